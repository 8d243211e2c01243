"""A template that means harm is a UserError, soon and in little memory; the next template does not notice."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fox.errors import Failure, UserError
from fox.tokenizer import Tokenizer
from fox.tokenizer import template as fox_template
from fox.tokenizer.chat import encode_chat
from fox.tokenizer.template import render

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"messages": MESSAGES, "generation_marks": ["", ""]}
ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="what Linux tells of a process, and the limit that macOS lacks"
)

TIME = r"takes more than 1 s of processor time"
MEMORY = r"takes more than 512 MB of memory"
EITHER = rf"({TIME}|{MEMORY})"
HOSTILE = {
    "counts": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", TIME),
    "a power, while it is compiled": ("{{ 10 ** (10 ** 8) }}", EITHER),
    "half a million literals": ("{% for n in [" + "0," * 480_000 + "] %}{{ n }}{% endfor %}", EITHER),
    "a long text": ("{{ 'x' * 10 ** 10 }}", MEMORY),
    "a long list": ("{{ [0] * 10 ** 10 }}", MEMORY),
    "doubles": (
        "{% set n = namespace(x='x') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        MEMORY,
    ),
    "centres": ("{{ 'x' | center(10 ** 10) }}", MEMORY),
    "formats": ("{{ '%1000000000d' | format(1) }}", MEMORY),
    "formats anew": ("{{ '{:10000000000}'.format(1) }}", MEMORY),
    "fills up": ("{{ 'x'.zfill(10 ** 10) }}", MEMORY),
    "indents": ("{{ messages | tojson(indent=10 ** 10) }}", EITHER),
    "replaces": ("{{ ('x' * 10 ** 5) | replace('x', 'x' * 10 ** 5) }}", MEMORY),
    "writes much": ("{{ 'x' * 10 ** 7 }}", "it writes more than 2,000,"),
}
REFUSED = {
    "calls itself": ("{% macro f(n) %}{{ f(n + 1) }}{{ f(n) }}{% endmacro %}{{ f(0) }}", "recursion"),
    "calls itself by its loop": (
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "(recursion|ends with code)",
    ),
    "deep in brackets": ("{{ " + "[" * 300_000 + "]" * 300_000 + " }}", "."),
    "deep in sums": ("{{ x" + "+1" * 5_000 + " }}", "."),
    "deep in not": ("{{ " + "not " * 240_000 + "1 }}", "."),
    "includes": ("{% include '/etc/passwd' %}", "no loader"),
    "imports": ("{% import '/etc/passwd' as x %}", "no loader"),
    "extends": ("{% extends '/etc/passwd' %}", "no loader"),
    "too long": (" " * 1_000_001, "has 1,000,001 characters, and a template has at most 1,000,000"),
}


@pytest.fixture
def fresh_worker() -> Iterator[None]:
    """What the children used so far is counted before the test, and what this test's used at its end."""
    stop()
    yield
    stop()


def stop() -> None:
    if fox_template._worker is not None:
        fox_template._worker.end()


TOO_LONG = "takes more than 1 s of processor time"
"""Which a slow machine may meet before the memory's limit."""


def worker_id() -> int:
    assert fox_template._worker is not None
    return fox_template._worker.process.pid


def children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(("template", "told"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_ended(template: str, told: str, fresh_worker: None) -> None:
    before_s, began = children_s(), time.monotonic()
    with pytest.raises(UserError, match=rf"(?s)tokenizer\.chat_template: .*({told}|{TOO_LONG})"):
        render(template, {}, [CHAT])
    assert time.monotonic() - began < 10, "so much even on a machine that has much else to do"
    assert render("{{ messages[0].content }}", {}, [CHAT]) == ["Hi"], "the next one is rendered"
    stop()
    assert children_s() - before_s < 2.5, "a second, and two times Python's start"


@pytest.mark.parametrize(("template", "told"), REFUSED.values(), ids=REFUSED)
def test_a_hostile_template_is_refused(template: str, told: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"(?s)tokenizer\.chat_template: .*({told}|{TOO_LONG})"):
        render(template, {}, [CHAT])
    assert time.monotonic() - began < 10
    assert render("{{ messages[0].content }}", {}, [CHAT]) == ["Hi"], "the next one is rendered"


@ON_LINUX
def test_memory_is_bounded_here_and_there() -> None:
    """In a process of its own: what a test before used at most can't be told from what this one does."""
    program = """
import json, resource, sys
from fox.errors import UserError
from fox.tokenizer.template import render
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for template in json.loads(sys.argv[1]):
    try:
        render(template, {}, [{"messages": []}])
    except UserError:
        continue
    raise SystemExit(f"{template} is rendered")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    names = ("a long text", "doubles", "replaces", "writes much")
    templates = fox_template._as_json([HOSTILE[name][0] for name in names])
    done = subprocess.run([sys.executable, "-c", program, templates], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours_kb, theirs_kb = map(int, done.stdout.split())
    assert ours_kb < 50 * 1024
    assert theirs_kb < fox_template.MEMORY_BYTES / 1024


def test_a_flood_of_special_tokens_is_bounded(tiny_tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    backend.add_special_tokens(["※"])
    flooded = Tokenizer(backend, {**tiny_tokenizer.config, "chat_template": "{{ '※' * 300000 }}"})
    assert len(encode_chat(flooded, MESSAGES).ids) == 300_000
    flooded.config["chat_template"] = "{{ '※' * 3000000 }}"
    with pytest.raises(UserError, match="writes more than"):
        encode_chat(flooded, MESSAGES)


ESCAPES = [
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ '' | attr('__class__') }}",
    "{{ '' | attr('__cla' ~ 'ss__') | attr('__mro__') }}",
    "{{ '' | attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "{{ messages | map(attribute='__class__') | map('string') | join }}",
    "{{ messages | map('attr', '__class__') | map('string') | join }}",
    "{{ [messages] | sum(attribute='__class__') }}",
    "{{ lipsum.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ namespace(x=1)._Namespace__attrs }}",
    "{% set n = namespace() %}{% set n.__class__ = 1 %}{{ n.__class__.__mro__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ self.__init__.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__code__ }}",
    "{{ strftime_now.__globals__['sys'].modules }}",
    "{{ strftime_now.__closure__ }}",
    "{% macro f() %}{% endmacro %}{{ f._environment }}{{ f._func.__globals__ }}",
    "{% for m in messages %}{{ loop._iterable }}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': ''}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    "{{ ('{0.__class__}' | attr('format'))('') }}",
    "{{ ['{0.__class__}'] | map('attr', 'format') | map('string') | join }}",
    "{{ ('{0.__class__}' | escape).format('') }}",
    "{{ ''.join.__self__.__class__ }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages.append(1) }}{{ messages.clear() }}",
    "{{ messages | map('pop') | list }}",
    "{{ caller.__globals__ }}{{ varargs.__class__ }}",
    "{{ config }}{{ request }}{{ get_flashed_messages }}{{ open }}{{ __import__ }}{{ __builtins__ }}{{ __loader__ }}",
    "{{ __import__('os').system('id') }}",
    "{{ open('/etc/passwd').read() }}",
    "{% debug %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_nothing_is_reached_from_inside(template: str) -> None:
    try:
        (text,) = render(template, {}, [CHAT])
    except UserError as error:
        text = str(error).partition("messages:")[2]
    for reached in ("<class", "<module", "<code", "<built-in", "uid=", "root:", "environ", "<Context"):
        assert reached not in text


@ON_LINUX
def test_were_it_reached_there_would_be_nothing(monkeypatch: pytest.MonkeyPatch, fresh_worker: None) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    render("x", {}, [CHAT])
    place = Path(f"/proc/{worker_id()}")
    assert b"secret" not in (place / "environ").read_bytes()
    limits = {line[:25].strip(): line[25:].split()[:2] for line in (place / "limits").read_text().splitlines()}
    assert limits["Max address space"] == [str(fox_template.MEMORY_BYTES)] * 2
    for name in ("Max open files", "Max processes", "Max file size", "Max core file size"):
        assert limits[name] == ["0", "0"], name
    assert {str(each.readlink()).partition(":")[0] for each in (place / "fd").iterdir()} <= {"socket", os.devnull}


OF_TEMPLATES = """{{ }} {% %} {%- -%} {# #} {%if%} {%for messages in range(3) namespace( x= 1 ) 'a' " [ ] { } , . | ~ + * ** // % 99 -1 == not and
{%endif%} {%endfor%} {%else%} {%set x=%} {%macro f()%} {%endmacro%} {{f()}} {%generation%} {%endgeneration%} {{messages}} content role
.content ['role'] |length |tojson |join |trim |upper |map( attribute= |list |first loop.index {%break%} {%continue%} raise_exception(
strftime_now('%Y') none true self super() caller() __class__ is defined {%call f()%} {%endcall%} {%raw%} {%endraw%} {%filter upper%}
{%endfilter%} {%block b%} {%endblock%} {%include%} \\N{BULLET} \\u0000 \ud83e 🦊 <eos>"""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(OF_TEMPLATES.split()) | st.text(max_size=2), max_size=14).map(" ".join))
def test_any_template_gives_text_or_a_user_error(template: str) -> None:
    try:
        (text,) = render(template, {"bos_token": "<bos>"}, [CHAT])
    except UserError:
        return
    assert isinstance(text, str)


@given(st.lists(st.text(st.characters(), max_size=20), max_size=200))
def test_texts_come_back_as_they_are_however_many(contents: list[str]) -> None:
    contents = [*contents, "\ud83e\udd8a", "\ud83e", "a\r\n\x00\x85\u2028"]
    chats = [{"messages": [{"role": "user", "content": content}]} for content in contents]
    assert render("{{ messages[0].content }}", {}, chats) == contents


def test_batches_are_cut_by_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fox_template, "_BATCH_CHARACTERS", 100)
    contents = ["x" * length for length in (0, 10, 60, 300, 5, 5, 5)]
    assert render("{{ content }}", {}, [{"content": content} for content in contents]) == contents
    assert render("{{ content }}", {}, []) == []


def test_a_refusal_gives_no_commands_to_the_terminal() -> None:
    with pytest.raises(UserError) as told:
        render(r"{{ raise_exception('\x1b[2Jno\x9b:\n' ~ 'x' * 100000) }}", {}, [CHAT])
    assert r"messages: \x1b[2Jno\x9b:" in str(told.value)
    assert len(str(told.value)) < 3000


def test_a_child_renders_for_itself(fresh_worker: None) -> None:
    render("x", {}, [CHAT])
    ours = worker_id()
    child = os.fork()
    if child == 0:  # pytest must not go on in here, whatever happens
        try:
            text = render("{{ messages[0].content }}", {}, [CHAT])
            good = text == ["Hi"] and worker_id() != ours
            stop()
            gc.collect()
            os._exit(0 if good else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert render("{{ messages[0].content }}", {}, [CHAT]) == ["Hi"]
    assert worker_id() == ours


def test_threads_render_at_once() -> None:
    wrong = []

    def many(name: str) -> None:
        for number in range(100):
            text = f"{name} {number}"
            if render(f"{name} {{{{ number }}}}", {}, [{"number": number}]) != [text]:
                wrong.append(text)

    threads = [threading.Thread(target=many, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_worker_that_was_killed_is_replaced() -> None:
    render("x", {}, [CHAT])
    process = fox_template._worker.process  # type: ignore[union-attr]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert render("x", {}, [CHAT]) == ["x"]


def test_a_worker_that_says_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    render("x", {}, [CHAT])
    os.kill(worker_id(), signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(fox_template, "_ANSWER_S", 0.1)
        with pytest.raises(UserError, match=r"there is no answer after 0\.1 s"):
            render("x", {}, [CHAT])
    assert render("x", {}, [CHAT]) == ["x"]


def test_an_interrupted_question_is_not_answered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    render("x", {}, [CHAT])
    with monkeypatch.context() as patch:
        patch.setattr(fox_template._Worker, "_read_until", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render("first", {}, [CHAT])
    assert render("second", {}, [CHAT]) == ["second"]


def test_where_no_worker_starts_it_is_told(monkeypatch: pytest.MonkeyPatch, fresh_worker: None) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(fox_template, "_library_folders", list)
        with pytest.raises(
            Failure, match=r"can't start a process to render the chat template in: .*No module named 'jinja2'"
        ):
            render("x", {}, [CHAT])
        patch.setattr(sys, "executable", "/no/such/python")
        with pytest.raises(Failure, match=r"can't start a process .*No such file"):
            render("x", {}, [CHAT])


@pytest.mark.parametrize("ending", ["pass", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
def test_it_ends_with_us(ending: str) -> None:
    program = f"""
from fox.tokenizer import template
template.render("x", {{}}, [{{}}])
print(template._worker.process.pid, flush=True)
{ending}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    for _ in range(100):
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return
        state = Path(f"/proc/{int(done.stdout)}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # ended; in a container there may be nobody to take note of it
        time.sleep(0.05)
    raise AssertionError("it goes on without us")
