"""A Modelfile says what the chat template says, or leaves it out; shown by rendering it as Ollama does."""

from __future__ import annotations

import copy
import dataclasses
import re
from pathlib import Path

import pytest

from fox.export import ollama
from fox.export.ollama import go_template, modelfile
from fox.model.stored import StoredModel
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import Message, rendered_chats
from fox.tokenizer.train import CHAT_TEMPLATE
from tests.unit.export.exporting import exported

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SAYABLE = {"Fox's own": CHAT_TEMPLATE, "ChatML": CHATML, "SmolLM2's": SMOLLM2, "Llama 3's": LLAMA3}
UNSAYABLE = {
    "none": None,
    "the system message within the first question": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {% if loop.index0 == 1 and messages[0].role == 'system' %}"
        "<<SYS>>{{ messages[0].content }}<</SYS>>{% endif %}{{ m.content }} [/INST]{% elif m.role == 'assistant' %}"
        " {{ m.content }}</s>{% endif %}{% endfor %}"
    ),
    "no system message": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}",
    "in capitals": "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}",
    "only the last message": "{{ messages[-1].role }}: {{ messages[-1].content }}\n",
    "numbered": "{% for m in messages %}{{ loop.index }} {{ m.role }}: {{ m.content }}\n{% endfor %}",
    "reads like Ollama's own": "{% for m in messages %}{{ '{{ .X }}' }}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "ends the Modelfile's text": '{% for m in messages %}{{ \'"""\' }}{{ m.role }}: {{ m.content }}\n{% endfor %}',
    "without end": "{% for m in range(10**9) %}x{% endfor %}",
    "broken": "{% for m in messages %}",
}
TRIALS: list[list[Message]] = [
    [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    for roles in (["user"], ["system", "user"], ["user", "assistant", "user"], ["system", "user", "assistant", "user"])
    for contents in (["Hi", "a fox", "why\n\nso?", "x"], ["{{ .Content }}", "«naïve»  ", "- a\n- b", "12 + 3 = "])
]


def with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    made = copy.copy(tokenizer)
    made.config = {**tokenizer.config, "chat_template": template}
    return made


def as_ollama_renders(template: str, messages: list[Message]) -> str:
    """Go's text/template, as much of it as these templates have: one range over the messages, one chain of ifs in it."""
    found = re.fullmatch(
        r'(?:\{\{ if ne \(index \.Messages 0\)\.Role "system" \}\}(?P<opening>.*?)\{\{ end \}\})?'
        r"\{\{ range \.Messages \}\}(?P<cases>.*?)\{\{ end \}\}\{\{ end \}\}(?P<prompt>.*)",
        template,
        re.DOTALL,
    )
    assert found, template
    cases = re.findall(
        r'\{\{ (?:else )?if eq \.Role "(\w+)" \}\}(.*?)\{\{ \.Content \}\}(.*?)(?=\{\{ else|\Z)',
        found["cases"],
        re.DOTALL,
    )
    around = {role: (before, after) for role, before, after in cases}
    assert list(around) == ["system", "user", "assistant"]
    opening = (found["opening"] or "") if messages[0]["role"] != "system" else ""
    said = [around[m["role"]][0] + m["content"] + around[m["role"]][1] for m in messages]
    return opening + "".join(said) + found["prompt"]


@pytest.mark.parametrize("name", SAYABLE)
def test_conversations_come_out_as_the_template_writes_them(name: str, own_tokenizer: Tokenizer) -> None:
    tokenizer = with_template(own_tokenizer, SAYABLE[name])
    template = go_template(tokenizer).text
    assert template is not None
    for messages in TRIALS:
        (wanted,) = rendered_chats(tokenizer, [messages], True)
        assert as_ollama_renders(template, messages) == wanted.removeprefix("<bos>"), messages


def test_the_comparison_notices_another_template(own_tokenizer: Tokenizer) -> None:
    template = go_template(with_template(own_tokenizer, SMOLLM2)).text
    assert template is not None
    (wanted,) = rendered_chats(with_template(own_tokenizer, CHATML), [TRIALS[0]], True)
    assert as_ollama_renders(template, TRIALS[0]) != wanted


@pytest.mark.parametrize("name", UNSAYABLE)
@pytest.mark.timeout(30)
def test_what_can_not_be_said_is_left_to_ollama(name: str, own_tokenizer: Tokenizer) -> None:
    tokenizer = with_template(own_tokenizer, UNSAYABLE[name])
    template = go_template(tokenizer)
    assert template.text is None
    assert bool(template.why_not) is (name != "none")
    lines = modelfile(tokenizer, template, "model.gguf").splitlines()
    told = [f"# Without TEMPLATE, for the model's chat template {template.why_not}."] if template.why_not else []
    assert lines[: 1 + len(told)] == ["FROM ./model.gguf", *told]
    assert all(line.startswith(("FROM ./", "# ", "PARAMETER stop ")) for line in lines)


@pytest.mark.parametrize("form", ["%d %b %Y", "%H:%M", "%A", "%S", "%j", "%p"])
def test_a_date_is_not_frozen_on_the_day_of_the_export(
    form: str, own_tokenizer: Tokenizer, wide: StoredModel, out: Path
) -> None:
    """As Llama 3.2's template has it."""
    dated = "{{ bos_token }}{% if messages[0].role != 'system' %}Today: {{ strftime_now('" + form + "') }}\n{% endif %}"
    dated += "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"
    tokenizer = with_template(own_tokenizer, dated)
    template = go_template(tokenizer)
    assert (template.text, template.why_not[:28]) == (None, "tells the model the date, an")
    assert go_template(with_template(own_tokenizer, dated.replace("strftime_now", "string"))).text is None, (
        "no function"
    )
    fixed = re.sub(r"{{ strftime_now.*?}}", "26 Jul 2024", dated)
    assert "26 Jul 2024" in str(go_template(with_template(own_tokenizer, fixed)).text)
    made = exported(dataclasses.replace(wide, tokenizer=tokenizer), out / "folder", "ollama", "q8_0")
    assert 'TEMPLATE "' not in (out / "folder/Modelfile").read_text()
    (warning,) = made.warnings
    assert warning.startswith("the Modelfile has no TEMPLATE, for the chat template tells the model the date")
    assert "write your own" in warning and made.renders_chats


def test_the_trials_are_what_tells(monkeypatch: pytest.MonkeyPatch, own_tokenizer: Tokenizer) -> None:
    monkeypatch.setattr(ollama, "_TRIALS", ())
    assert go_template(with_template(own_tokenizer, UNSAYABLE["numbered"])).text is not None


def test_the_modelfile_of_foxs_own(own_tokenizer: Tokenizer) -> None:
    assert modelfile(own_tokenizer, go_template(own_tokenizer), "model.gguf") == (
        "FROM ./model.gguf\n"
        'TEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "system" }}<|system|>\n{{ .Content }}<eos>\n'
        '{{ else if eq .Role "user" }}<|user|>\n{{ .Content }}<eos>\n'
        '{{ else if eq .Role "assistant" }}<|assistant|>\n{{ .Content }}<eos>\n'
        '{{ end }}{{ end }}<|assistant|>\n"""\n'
        'PARAMETER stop "<eos>"\n'
        'PARAMETER stop "<|user|>"\n'
    )


def test_a_default_system_message_stands_only_where_none_is_given(own_tokenizer: Tokenizer) -> None:
    template = go_template(with_template(own_tokenizer, SMOLLM2)).text
    assert template is not None
    asked: Message = {"role": "user", "content": "Hi"}
    assert "named SmolLM" in as_ollama_renders(template, [asked])
    assert "named SmolLM" not in as_ollama_renders(template, [{"role": "system", "content": "Be brief."}, asked])


def test_the_folder(wide: StoredModel, out: Path) -> None:
    made = exported(wide, out / "folder", "ollama", "q8_0")
    assert {path.name for path in (out / "folder").iterdir()} == {"model.gguf", "Modelfile", "README.md"}
    assert (out / "folder/Modelfile").read_text() == modelfile(
        wide.tokenizer, go_template(wide.tokenizer), "model.gguf"
    )
    assert not made.warnings
    assert made.num_bytes == (out / "folder/model.gguf").stat().st_size
