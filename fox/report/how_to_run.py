"""How to run an exported model in each engine that reads it, as sections of its card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fox.report import markdown
from fox.report.about import About


@dataclass(frozen=True)
class Opening:
    """What the examples say first, and how long an answer they ask for."""

    prompt: str = "Hello! How are you today?"
    max_tokens: int = 96

    @property
    def in_shell(self) -> str:
        return shlex.quote(self.prompt)

    @property
    def in_python(self) -> str:
        return json.dumps(self.prompt, ensure_ascii=False)


def how_to_run(about: About, opening: Opening) -> str:
    """The commands for what this export holds: to talk with a tuned model, to let a base model go on with a text."""
    if about.target == "hf":
        where = "The commands below run in this folder; elsewhere, its path or its name on the hub takes the place of the dot."
        sections = [_transformers(about, opening), _vllm(about, opening), *_fox(about, "."), _to_gguf(about)]
    else:
        where = "The commands below run in the folder that this is in."
        sections = [_llama_cpp(about, opening), _ollama(about), *_fox(about, about.gguf)]
    what = "" if about.chats else "This model goes on with a text; it does not answer."
    return "\n\n".join(["## How to run it", " ".join(filter(None, [what, where])), *sections])


def _transformers(about: About, opening: Opening) -> str:
    if about.chats:
        inputs = f"""\
messages = [{{"role": "user", "content": {opening.in_python}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
"""
    else:
        inputs = f'inputs = tokenizer({opening.in_python}, return_tensors="pt", return_token_type_ids=False)\n'
    program = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
{inputs}made = model.generate(**inputs, max_new_tokens={opening.max_tokens})
print(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
    return f"**transformers**\n\n{markdown.code(program, 'python')}"


def _vllm(about: About, opening: Opening) -> str:
    asked: dict[str, Any] = {"prompt": opening.prompt}
    if about.chats:
        asked = {"messages": [{"role": "user", "content": opening.prompt}]}
    place = "chat/completions" if about.chats else "completions"
    body = json.dumps({"model": about.short_name, **asked, "max_tokens": opening.max_tokens}, ensure_ascii=False)
    commands = (
        f"vllm serve . --served-model-name {about.short_name}\n"
        f"curl http://localhost:8000/v1/{place} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )
    return f"**vLLM** (the second command in another terminal)\n\n{markdown.code(commands, 'sh')}"


def _llama_cpp(about: About, opening: Opening) -> str:
    file = shlex.quote(about.gguf)
    if about.chats:
        return f"**llama.cpp**\n\n{markdown.code(f'llama-cli -m {file} --jinja -cnv', 'sh')}"
    command = f"llama-completion -m {file} -no-cnv -n {opening.max_tokens} -p {opening.in_shell}"
    note = "in releases before December 2025 this program is `llama-cli`"
    return f"**llama.cpp** ({note})\n\n{markdown.code(command, 'sh')}"


def _ollama(about: About) -> str:
    name = about.short_name
    if about.target == "ollama":
        return f"**Ollama**\n\n{markdown.code(f'ollama create {name} -f Modelfile && ollama run {name}', 'sh')}"
    export = f"fox export MODEL --to ollama --type {about.file_type} --out {name}-ollama"
    return (
        "**Ollama** wants a Modelfile beside it. This makes both, where MODEL is what this file was made of:\n\n"
        + markdown.code(f"{export}\ncd {name}-ollama && ollama create {name} -f Modelfile && ollama run {name}", "sh")
    )


def _fox(about: About, model: str) -> Iterator[str]:
    if about.chats:
        yield f"**Fox**\n\n{markdown.code(f'fox chat {shlex.quote(model)}', 'sh')}"


def _to_gguf(about: About) -> str:
    name = about.short_name
    commands = (
        f"fox export . --to gguf --type q4_k_m --out {name}-q4_k_m.gguf    # for llama.cpp\n"
        f"fox export . --to ollama --type q4_k_m --out {name}-ollama    # for Ollama"
    )
    return (
        f"**llama.cpp and Ollama** read GGUF files, which Fox makes of this folder\n\n{markdown.code(commands, 'sh')}"
    )
