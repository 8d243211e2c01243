"""The process that renders chat templates, for template.py: a line of JSON in, a line of JSON out, little else allowed.

    python -I -S template_worker.py LIMITS FOLDER...

It is run by its path, since importing fox would bring libraries that a hostile template has no business with.
"""

from __future__ import annotations

import sys

sys.path.extend(sys.argv[2:])  # the folders that hold jinja2, behind the standard library

# Some of these only because jinja2 and str load them when they first need them, and then no file can be opened.
import contextlib
import datetime
import encodings.unicode_escape  # noqa: F401
import gc
import html  # noqa: F401
import json
import os
import pprint  # noqa: F401
import resource
import signal
import textwrap  # noqa: F401
import unicodedata  # noqa: F401
from typing import Any, NoReturn

import jinja2
import jinja2.constants
import jinja2.debug
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

_REASON_CHARACTERS = 2000


def main() -> None:
    """Answer requests until there are no more. A template that breaks a limit ends the process."""
    limits = json.loads(sys.argv[1])
    renderer = _Renderer()
    _limit(limits["memory_bytes"])
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(b"ready\n")
    answers.flush()
    try:
        for line in requests:
            request = json.loads(line.decode("utf-8", "surrogatepass"))
            signal.setitimer(signal.ITIMER_PROF, limits["processor_s"])  # whose signal ends us, also inside a long sum
            try:
                answer: dict[str, Any] = {"texts": renderer.render(**request)}
            except MemoryError:
                raise
            except Exception as error:  # a template is someone's program: whatever it raises is its own mistake
                answer = {"error": (str(error) or type(error).__name__)[:_REASON_CHARACTERS]}
            answers.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            answers.flush()
            signal.setitimer(signal.ITIMER_PROF, 0)
    except MemoryError:
        os._exit(limits["out_of_memory"])
    except BrokenPipeError:  # nobody is there to listen
        os._exit(0)


def _limit(memory_bytes: int) -> None:
    """From here on: so much memory, no new file, no new process, nothing written to a file, and no core when we are ended."""
    datetime.datetime.now().strftime("%c %Z")  # reads the time zone, while files can be opened
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)  # until here it told why we don't start; a warning must not get between the answers
    os.close(nothing)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whoever started us may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    for name, most in (
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_NOFILE", 0),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
    ):
        # Not every system has each of them (macOS refuses some); the sandbox and the processor's time are limited anyhow.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (most, most))


class _Renderer:
    """A sandbox that can change nothing, with the functions that Hugging Face's templates may call, and the last template in it."""

    def __init__(self) -> None:
        self._sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
        )
        self._sandbox.globals["raise_exception"] = _raise_exception
        self._now: datetime.datetime | None = None
        self._sandbox.globals["strftime_now"] = lambda form: (self._now or datetime.datetime.now()).strftime(form)
        self._sandbox.filters["tojson"] = _tojson
        self._source: str | None = None
        self._compiled: jinja2.Template | None = None

    def render(
        self, template: str, shared: dict[str, Any], chats: list[dict[str, Any]], most: int, now: str | None
    ) -> list[str]:
        """The text of each chat, at the time `now` (ISO 8601) or today. Raises whatever the template raises, ValueError where it writes more than `most` characters."""
        self._now = datetime.datetime.fromisoformat(now) if now else None
        compiled = self._compile(template)
        texts = []
        written = 0
        for chat in chats:
            texts.append(compiled.render(**shared, **chat))
            written += len(texts[-1])
            if written > most:
                raise ValueError(f"it writes more than {most:,} characters")
        return texts

    def _compile(self, template: str) -> jinja2.Template:
        if self._compiled is None or self._source != template:
            if self._compiled is not None:
                self._compiled = self._source = None  # a large one must not leave the next too little memory
                gc.collect()
            self._compiled = self._sandbox.from_string(template)
            self._source = template
        return self._compiled


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: Hugging Face's marks around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = nodes.Name("generation_marks", "load")
        opening, closing = (nodes.Output([nodes.Getitem(marks, nodes.Const(n), "load")]) for n in (0, 1))
        return nodes.Scope([opening, *body, closing], lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    main()
