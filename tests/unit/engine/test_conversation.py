"""A conversation says what it would without its memory, and makes room when it grows too long."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from fox.engine.conversation import Conversation
from fox.engine.generate import generate
from fox.engine.kv_cache import KVCache
from fox.engine.sampler import Sampling
from fox.errors import UserError
from fox.model import Transformer
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chat

SAMPLING = Sampling(temperature=1.0, top_p=0.95, seed=5)
TURNS = ["Hello", "The fox <eos> ran", "日本語 🦊"]


@pytest.fixture
def read_tokens(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass read."""
    counts: list[int] = []
    forward = Transformer.forward

    def spy(self: Transformer, tokens_BT, *args, **kwargs):  # type: ignore[no-untyped-def]
        counts.append(tokens_BT.shape[1])
        return forward(self, tokens_BT, *args, **kwargs)

    monkeypatch.setattr(Transformer, "forward", spy)
    return counts


def say(conversation: Conversation, text: str, max_tokens: int = 24) -> str:
    return "".join(conversation.reply(text, SAMPLING, max_tokens))


def continued(conversation: Conversation) -> Conversation:
    """A fresh conversation, with nothing in its cache, of the same messages."""
    fresh = Conversation(conversation.model, conversation.tokenizer)
    fresh.messages = list(conversation.messages)
    return fresh


def test_the_same_reply_as_without_memory(
    tiny_model: Transformer, tiny_tokenizer: Tokenizer, read_tokens: list[int]
) -> None:
    conversation = Conversation(tiny_model, tiny_tokenizer, system="Be brief.")
    for turn, text in enumerate(TURNS):
        fresh = continued(conversation)
        read_tokens.clear()
        reply = say(conversation, text)
        read_first = read_tokens[0]
        read_tokens.clear()
        assert reply == say(fresh, text)
        assert conversation._seen == fresh._seen
        assert conversation.messages == fresh.messages
        assert (read_first < read_tokens[0]) is (turn > 0), "of an old conversation, only what is new is read"
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 3]


def test_that_check_notices_a_stale_memory(tiny_model: Transformer, tiny_tokenizer: Tokenizer) -> None:
    conversation = Conversation(tiny_model, tiny_tokenizer)
    say(conversation, TURNS[0])
    fresh = continued(conversation)
    with torch.inference_mode():
        for layer in conversation._cache.layers:
            layer._v_BKSH.zero_()
    assert say(conversation, TURNS[1]) != say(fresh, TURNS[1])


@pytest.mark.parametrize("pieces", [0, 1, 5])
def test_stopped_midway_and_gone_on(tiny_model: Transformer, tiny_tokenizer: Tokenizer, pieces: int) -> None:
    conversation = Conversation(tiny_model, tiny_tokenizer)
    reply = conversation.reply("Hello", SAMPLING, 40)
    said = "".join(next(reply) for _ in range(pieces))
    reply.close()
    if pieces == 0:
        assert conversation.messages == [], "a reply that was never asked for was not begun"
    else:
        assert conversation.messages[-1]["role"] == "assistant"
        assert conversation.messages[-1]["content"].startswith(said)
        assert not conversation.ended
    fresh = continued(conversation)
    assert say(conversation, "And?") == say(fresh, "And?")
    assert conversation.messages == fresh.messages


def test_an_interrupt_while_computing_keeps_what_was_said(
    tiny_model: Transformer, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(tiny_model, tiny_tokenizer)
    extend = type(conversation._cache.layers[1]).extend
    calls = iter(range(1000))

    def interrupted(layer, *kv):  # type: ignore[no-untyped-def]
        if next(calls) == 25:  # in the middle of the ninth pass
            raise KeyboardInterrupt
        return extend(layer, *kv)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(conversation._cache.layers[1]), "extend", interrupted)
        say(conversation, "Hello", 40)
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    fresh = continued(conversation)
    assert say(conversation, "And?") == say(fresh, "And?")


def test_the_oldest_turns_make_room(make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer) -> None:
    conversation = Conversation(make_model(max_position_embeddings=96), tiny_tokenizer, system="Be brief.")
    forgotten = []
    for number in range(8):
        fresh = continued(conversation)
        assert say(conversation, f"Fox {number}?") == say(fresh, f"Fox {number}?")
        forgotten.append(conversation.forgotten_turns)
        assert conversation.messages[0] == {"role": "system", "content": "Be brief."}
        assert conversation.messages[-2] == {"role": "user", "content": f"Fox {number}?"}
        assert conversation._cache.num_tokens <= 96
        assert len(conversation.messages) == 1 + 2 * (number + 1 - conversation.forgotten_turns)
    assert forgotten[0] == 0
    assert 0 < forgotten[-1] < 8


def test_a_message_that_is_too_long_changes_nothing(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer
) -> None:
    conversation = Conversation(make_model(max_position_embeddings=96), tiny_tokenizer)
    say(conversation, "Hello", 4)
    say(conversation, "Hello again", 4)
    before = list(conversation.messages)
    fresh = continued(conversation)
    with pytest.raises(UserError, match=r"message = 'xxx.* … .*takes \d+ tokens .* the model reads 96.*Say less"):
        say(conversation, "x" * 500)
    assert conversation.messages == before
    assert conversation.forgotten_turns == 0
    assert say(conversation, "Bye") == say(fresh, "Bye")


@pytest.mark.parametrize("last", [b"\xf0\x9f", b"a\xe6"])
def test_what_is_shown_is_what_is_remembered(
    last: bytes, tiny_model: Transformer, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a reply ends within a character."""
    tokens = iter([*tiny_tokenizer.encode("naïve 🦊".encode() + last), tiny_tokenizer.eos_id])
    monkeypatch.setattr("fox.engine.generate.sample", lambda *_, **__: next(tokens))
    conversation = Conversation(tiny_model, tiny_tokenizer)
    shown = say(conversation, "Hi", 60)
    assert shown == conversation.messages[-1]["content"] == ("naïve 🦊".encode() + last).decode(errors="replace")


def test_a_reply_ends_at_its_end_token_the_limit_or_the_context(
    make_model: Callable[..., Transformer], tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(make_model(max_position_embeddings=64), tiny_tokenizer)
    asked = len(encode_chat(tiny_tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True).ids)
    say(conversation, "Hi", max_tokens=3)
    assert not conversation.ended
    assert conversation._cache.num_tokens <= asked + 3
    say(conversation, "Hi", max_tokens=10_000)
    assert not conversation.ended
    assert conversation._cache.num_tokens == 64
    monkeypatch.setattr("fox.engine.generate.sample", lambda *_, **__: tiny_tokenizer.eos_id)
    assert say(conversation, "Hi") == ""
    assert conversation.ended


def test_the_cache_is_full_only_at_its_last_token(tiny_model: Transformer) -> None:
    cache = KVCache(tiny_model.config, 8, torch.float32, torch.device("cpu"))
    assert len(list(generate(tiny_model, [5] * 8, cache, SAMPLING, (), 100))) == 1, (
        "of a full context one more is known"
    )
    cache.truncate(3)
    assert len(list(generate(tiny_model, [5] * 2, cache, SAMPLING, (), 100))) == 4


@pytest.mark.parametrize("template", ["", "{{ '' }}", "{% if messages | length > 9 %}x{% endif %}"])
def test_a_template_that_renders_to_nothing_is_refused(
    template: str, tiny_model: Transformer, tiny_tokenizer: Tokenizer
) -> None:
    tokenizer = copy.copy(tiny_tokenizer)
    tokenizer.config = {**tiny_tokenizer.config, "chat_template": template}
    conversation = Conversation(tiny_model, tokenizer)
    with pytest.raises(UserError, match=r"tokenizer\.chat_template = .*: makes nothing of this conversation.*\. Mend"):
        say(conversation, "Hello")
    assert conversation.messages == []
