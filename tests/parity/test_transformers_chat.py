"""A chat becomes the tokens, and the loss mask, that transformers makes of it with the same files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from fox.tokenizer import Tokenizer
from fox.tokenizer import chat as fox_chat
from fox.tokenizer.chat import encode_chat

CHATS = [
    [("user", "Hello"), ("assistant", "Hi, you fox.")],
    [("system", "Be brief."), ("user", "What is 12 + 345?"), ("assistant", "357"), ("user", "And\n\n日本語 🦊?"), ("assistant", "«Naïve»")],
    [("user", "a"), ("assistant", ""), ("user", " spaces  around "), ("assistant", "of course: \tyes")],
    [("system", "s"), ("user", "no answer yet")],
]  # fmt: skip
TEMPLATES = {
    "ours": None,
    "chatml, null where there are no tools": (
        "{%- if tools is not none %}{{ raise_exception('no tools here') }}{% endif %}"
        "{%- for message in messages %}<start_of_turn>{{ message.role }}\n"
        "{% generation %}{{ message.content | trim }}<end_of_turn>{% endgeneration %}\n{% endfor %}"
        "{%- if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
    ),
    "the whole as JSON": "{{ bos_token }}{% for m in messages %}{{ m | tojson(ensure_ascii=False, indent=1) }}{{ eos_token }}{% endfor %}",
}


@pytest.fixture(params=TEMPLATES)
def folder(request: pytest.FixtureRequest, tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tiny_tokenizer.save(tmp_path)
    if template := TEMPLATES[request.param]:
        path = tmp_path / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return tmp_path


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("chat", CHATS)
def test_ids_and_mask(folder: Path, chat: list[tuple[str, str]], prompt: bool) -> None:
    messages = [{"role": role, "content": content} for role, content in chat]
    theirs = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=prompt, return_dict=True, return_assistant_tokens_mask=True
    )
    ours = encode_chat(Tokenizer.load(folder), messages, add_generation_prompt=prompt)
    assert ours.ids.tolist() == theirs["input_ids"]
    assert ours.is_learnt.astype(int).tolist() == theirs["assistant_masks"]


def test_we_read_the_tokenizer_that_they_write(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Newer releases write the template as chat_template.jinja, older ones special tokens as objects."""
    tiny_tokenizer.save(tmp_path / "ours")
    PreTrainedTokenizerFast.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "chat_template.jinja").exists()
    path = tmp_path / "theirs" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "bos_token": {"content": "<bos>", "lstrip": False}}))
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    again = Tokenizer.load(tmp_path / "theirs")
    assert (again.bos_id, again.eos_id, again.pad_id) == (2, 1, 0)
    assert encode_chat(again, messages).ids.tolist() == encode_chat(tiny_tokenizer, messages).ids.tolist()


def test_the_comparison_notices_a_lost_mark(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tiny_tokenizer.save(tmp_path)
    monkeypatch.setattr(
        fox_chat, "_unused_characters", lambda text, count: ["", "", *map(chr, range(0xF0000, 0xF0000 + count - 2))]
    )
    with pytest.raises(AssertionError):
        test_ids_and_mask(tmp_path, CHATS[1], prompt=False)
