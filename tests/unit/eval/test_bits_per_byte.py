"""Bits per byte by hand, from all logits of a real tiny model, one window at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fox.eval import bits_per_byte
from fox.eval.bits_per_byte import HeldOut, model_bits, score
from fox.formats.token_shards import Shard, ShardWriter, Tokens
from fox.model import Transformer
from fox.model.loss import IGNORED
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chats

TEXTS = [
    "The fox no. 5 ran over the lazy dog.",
    "日本語 🦊 café",
    "x",
    "The dog said: naïve! " * 9,
    "fox dog " * 16 + "The end of a long one",
]
CHATS = [
    [{"role": "user", "content": "The fox?"}, {"role": "assistant", "content": "The lazy dog."}],
    [
        {"role": "system", "content": "Be lazy."},
        {"role": "user", "content": "日本語?"},
        {"role": "assistant", "content": "🦊"},
        {"role": "user", "content": "dog"},
        {"role": "assistant", "content": "ran over café"},
    ],
]
WINDOW = 32


@pytest.fixture
def model(make_model: Callable[..., Any]) -> Transformer:
    return make_model(max_position_embeddings=WINDOW)


@pytest.fixture
def texts(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Shard:
    writer = ShardWriter(tmp_path / "texts.ds", tiny_tokenizer.vocab_size, with_loss_mask=False)
    for ids in tiny_tokenizer.encode_batch(TEXTS):
        writer.write(np.array([tiny_tokenizer.bos_id, *ids, tiny_tokenizer.eos_id]))
    writer.close()
    return Shard(tmp_path / "texts.ds", tiny_tokenizer.vocab_size)


@pytest.fixture
def chats(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Shard:
    writer = ShardWriter(tmp_path / "chats.ds", tiny_tokenizer.vocab_size, with_loss_mask=True)
    for chat in encode_chats(tiny_tokenizer, CHATS):
        writer.write(chat.ids, chat.is_learnt)
    writer.close()
    return Shard(tmp_path / "chats.ds", tiny_tokenizer.vocab_size)


def bits_by_hand(model: Transformer, document: Tokens) -> list[float]:
    """Of each token: -log2 of its share of the exponentials, in windows of WINDOW tokens, each read alone."""
    bits = [0.0]
    for start in range(0, len(document) - 1, WINDOW):
        window = torch.from_numpy(document[start : start + WINDOW])[None]
        logits_LV = model.logits(model(window))[0].double().detach()
        for place, target in enumerate(document[start + 1 : start + 1 + WINDOW]):
            log_sum = math.log(sum(math.exp(logit) for logit in logits_LV[place].tolist()))
            bits.append((log_sum - float(logits_LV[place, int(target)])) / math.log(2))
    return bits


def test_bits_per_byte_of_text_are_those_by_hand(model: Transformer, tiny_tokenizer: Tokenizer, texts: Shard) -> None:
    heldout = HeldOut.draw(texts, 10_000, seed=0)
    found = score(model, tiny_tokenizer, heldout, heldout.text_only(tiny_tokenizer), "float32")
    bits = tokens = 0
    for document in heldout.documents:
        of_tokens = bits_by_hand(model, document)
        assert len(of_tokens) == len(document)
        bits += sum(of_tokens[1:-1])  # <bos> is predicted by nothing, and the end is no text
        tokens += len(document) - 2
    assert any(len(document) > 2 * WINDOW for document in heldout.documents)
    assert found.bits == pytest.approx(bits, rel=1e-6)
    assert found.bytes == sum(len(text.encode()) for text in TEXTS)
    assert (found.tokens, found.documents) == (tokens, 5)
    assert found.bits_per_byte == pytest.approx(bits / found.bytes, rel=1e-6)


def test_over_replies_the_end_counts_and_nothing_else_that_is_not_said(
    model: Transformer, tiny_tokenizer: Tokenizer, chats: Shard
) -> None:
    heldout = HeldOut.draw(chats, 10_000, seed=0)
    found = score(model, tiny_tokenizer, heldout, heldout.learnt_only(), "float32")
    bits = ends = 0.0
    for document, said in zip(heldout.documents, heldout.learnt_only(), strict=True):
        of_tokens = bits_by_hand(model, document)
        bits += sum(of_tokens[place] for place in np.flatnonzero(said))
        ends += np.count_nonzero(document[said] == tiny_tokenizer.eos_id)
    assert ends == 3
    assert found.bits == pytest.approx(bits, rel=1e-6)
    assert found.bytes == len("The lazy dog.🦊ran over café".encode())


def test_how_many_are_read_at_once_changes_nothing(
    model: Transformer, texts: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = HeldOut.draw(texts, 10_000, seed=0).documents
    expected = model_bits(model, documents, "float32")
    for pass_tokens in (1, 50, 100, 333):
        monkeypatch.setattr(bits_per_byte, "_PASS_TOKENS", pass_tokens)
        for one, other in zip(model_bits(model, documents, "float32"), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_padding_says_nothing_whatever_its_tokens_are(
    model: Transformer, texts: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = HeldOut.draw(texts, 10_000, seed=0).documents
    expected = model_bits(model, documents, "float32")
    passes = bits_per_byte._passes

    def with_other_padding(*arguments: Any) -> Any:
        for places, tokens, targets in passes(*arguments):
            assert (targets == IGNORED).any()
            yield places, np.where(targets == IGNORED, 77, tokens), targets

    monkeypatch.setattr(bits_per_byte, "_passes", with_other_padding)
    for one, other in zip(model_bits(model, documents, "float32"), expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_token_but_the_first_is_scored_once(texts: Shard) -> None:
    documents = HeldOut.draw(texts, 10_000, seed=0).documents
    for window in (1, 7, 32, 1000):
        scored = [
            (number, start + 1 + place)
            for batch, _, _ in bits_per_byte._passes(documents, window)
            for number, start, count in batch
            for place in range(count)
        ]
        assert sorted(scored) == [(n, p) for n, document in enumerate(documents) for p in range(1, len(document))]


def test_a_draw_is_the_same_for_a_seed_whole_documents_and_cut_at_the_limit(texts: Shard) -> None:
    whole = [tuple(tokens.tolist()) for tokens, _ in texts.documents()]
    first, again, other = (HeldOut.draw(texts, 60, seed) for seed in (3, 3, 4))
    drawn = [tuple(document.tolist()) for document in first.documents]
    assert drawn == [tuple(document.tolist()) for document in again.documents]
    assert drawn != [tuple(document.tolist()) for document in other.documents]
    assert all(document in whole for document in drawn[:-1])
    assert any(document[: len(drawn[-1])] == drawn[-1] for document in whole)
    assert 58 < sum(map(len, drawn)) <= 60
    assert len(HeldOut.draw(texts, 10_000, 3).documents) == len(whole)
    assert HeldOut.draw(texts, 1, 3).documents == []
