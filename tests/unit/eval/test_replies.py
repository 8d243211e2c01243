"""What a reply's words are, and what a held-out chat begins with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fox.engine.sampler import Sampling
from fox.eval.replies import opening_lines, reply_to, vocabulary_of, words_of
from fox.formats.token_shards import Shard, ShardWriter
from fox.model import Transformer
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chats


def chat(*said: str, system: str | None = None) -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("I don't know, it’s John's.", ["i", "don't", "know", "it’s", "john's"]),
        ("42 is 4ever x2", ["is", "ever", "x"]),
        ("'quoted' snake_case", ["quoted", "snake", "case"]),
        ("Übung naïve 日本語 Привет", ["übung", "naïve", "日本語", "привет"]),
        ("… 🦊 \n\t --", []),
        ("", []),
    ],
)
def test_words_are_letters_with_apostrophes_between(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.fixture
def chats(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Shard:
    said = [
        chat("The lazy dog?", "The fox."),
        chat("How lazy?", "Very.", "Is it so?", "Yes."),
        chat("A dog", "A fox", system="Be brief."),
        chat("Last", "One"),
    ]
    writer = ShardWriter(tmp_path / "chats.ds", tiny_tokenizer.vocab_size, with_loss_mask=True)
    for encoded in encode_chats(tiny_tokenizer, said):
        writer.write(encoded.ids, encoded.is_learnt)
    writer.close()
    return Shard(tmp_path / "chats.ds", tiny_tokenizer.vocab_size)


def test_an_opening_line_is_what_the_person_said_before_the_first_reply(
    tiny_tokenizer: Tokenizer, chats: Shard
) -> None:
    assert opening_lines(tiny_tokenizer, chats, 9) == ["The lazy dog?", "How lazy?", "A dog", "Last"]
    assert opening_lines(tiny_tokenizer, chats, 2) == ["The lazy dog?", "How lazy?"]
    assert opening_lines(tiny_tokenizer, chats, 0) == []


def test_the_vocabulary_is_of_all_that_anyone_says(tiny_tokenizer: Tokenizer, chats: Shard) -> None:
    words = vocabulary_of(tiny_tokenizer, [chats])
    assert {"lazy", "very", "brief", "fox", "one"} <= words
    assert not words & {"user", "assistant", "eos", "bos"}


def test_a_reply_is_the_same_for_a_seed_and_says_whether_it_ended(
    tiny_model: Transformer, tiny_tokenizer: Tokenizer
) -> None:
    def reply(seed: int, max_tokens: int = 40) -> Any:
        return reply_to(tiny_model, tiny_tokenizer, "The fox?", Sampling(1.0, 0.9, seed=seed), max_tokens)

    assert reply(1) == reply(1) != reply(2)
    assert reply(1).prompt == "The fox?"
    assert not reply(1, max_tokens=1).ended


def test_a_reply_that_is_at_its_end_at_once_is_empty_and_ended(
    make_model: Callable[..., Any], tiny_tokenizer: Tokenizer
) -> None:
    model = make_model(num_hidden_layers=1)
    with torch.no_grad():  # every hidden state is much alike, and the end token's row is the longest that way
        for parameter in model.layers.parameters():
            parameter.zero_()
        model.embed_tokens.weight.fill_(0.001)
        model.embed_tokens.weight[tiny_tokenizer.eos_id] = 1.0
        model.norm.weight.fill_(1.0)
    reply = reply_to(model, tiny_tokenizer, "The fox?", Sampling(0.0, 1.0, seed=0), 40)
    assert (reply.ended, reply.text) == (True, "")
