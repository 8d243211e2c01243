"""A stored model that runs a block at a time is the plain Transformer, and never holds more than one block.

Both make the same float32 products in the same order, but for the size of a matrix product's part of the vocabulary, so they
agree within 1e-5 (logits are of size about 10).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fox.engine import streamed
from fox.engine.kv_cache import KVCache
from fox.engine.streamed import hidden_states, logits
from fox.export.gguf import export_gguf
from fox.model import Transformer
from fox.model.config import RopeScaling
from fox.model.directory import save_model
from fox.model.stored import EMBEDDING, HEAD, StoredModel, Weights, open_model
from fox.tokenizer import Tokenizer

LIMIT = 1e-5
LAYOUTS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "query-key norm": {"qk_norm": True, "head_dim": 16},
    "stretched evenly": {"rope_scaling": RopeScaling("linear", 4.0)},
    "stretched as Llama 3": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 48)},
    "one key head": {"num_key_value_heads": 1, "rope_theta": 50.0},
}


def ignore(*_: object) -> None:
    pass


@pytest.fixture
def tokens_BT() -> Tensor:
    return torch.randint(0, 400, (5, 33), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def store(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., StoredModel]:
    """A model as it lies on the disk."""

    def made(model: Transformer, dtype: torch.dtype = torch.float32) -> StoredModel:
        save_model(tmp_path / "model", model, tiny_tokenizer, dtype)
        return open_model(tmp_path / "model")

    return made


def plainly(model: Transformer, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    with torch.inference_mode():
        hidden_BTD = model(tokens_BT)
        return hidden_BTD, model.logits(hidden_BTD)


def assert_same(stored: StoredModel, model: Transformer, tokens_BT: Tensor) -> None:
    wanted_BTD, scores_BTV = plainly(model, tokens_BT)
    hidden_BTD = hidden_states(stored, tokens_BT, ignore)
    torch.testing.assert_close(hidden_BTD, wanted_BTD, atol=LIMIT, rtol=0)
    torch.testing.assert_close(logits(stored, hidden_BTD.flatten(0, 1)), scores_BTV.flatten(0, 1), atol=LIMIT, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_streamed_is_the_plain_model(
    layout: str, make_model: Callable[..., Transformer], store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    model = make_model(**LAYOUTS[layout])
    assert_same(store(model), model, tokens_BT)


@pytest.mark.parametrize("pass_tokens", [1, 40, 70])
def test_rows_may_pass_in_parts(
    pass_tokens: int, monkeypatch: pytest.MonkeyPatch, tiny_model: Transformer, store: Callable[..., StoredModel],
    tokens_BT: Tensor,
) -> None:  # fmt: skip
    monkeypatch.setattr(streamed, "_PASS_TOKENS", pass_tokens)
    assert_same(store(tiny_model), tiny_model, tokens_BT)


@pytest.mark.parametrize("damaged", [False, True])
def test_tokens_may_come_in_pieces(
    damaged: bool, tiny_model: Transformer, store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    stored = store(tiny_model)
    cache = KVCache(stored.config, tokens_BT.shape[1], torch.float32, torch.device("cpu"), rows=len(tokens_BT))
    made = []
    for piece_BT in tokens_BT.split([20, 1, 1, 11], dim=1):
        made.append(hidden_states(stored, piece_BT, ignore, cache))
        if damaged:
            with torch.inference_mode():
                cache.layers[1]._v_BKSH[3].zero_()
    same = torch.allclose(torch.cat(made, dim=1), plainly(tiny_model, tokens_BT)[0], atol=LIMIT, rtol=0)
    assert same is not damaged


def test_the_vocabulary_may_be_scored_in_parts(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Transformer, store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    monkeypatch.setattr(
        "fox.model.stored._CHUNK_WEIGHTS", 32 * 7
    )  # seven rows of the head, and 400 is no multiple of it
    assert_same(store(tiny_model), tiny_model, tokens_BT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_smaller_types_are_made_float32_first(
    dtype: torch.dtype, tiny_model: Transformer, store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    stored = store(tiny_model, dtype)
    assert_same(stored, stored.load(torch.float32), tokens_BT)
    with pytest.raises(AssertionError):
        assert_same(stored, tiny_model, tokens_BT)


def test_a_gguf_file_streams_too(
    tiny_model: Transformer, store: Callable[..., StoredModel], tokens_BT: Tensor, tmp_path: Path
) -> None:
    export_gguf(store(tiny_model), tmp_path / "model.gguf", "f32", {}, ignore)
    assert_same(open_model(tmp_path / "model.gguf"), tiny_model, tokens_BT)


# The comparison is shown to fail


class Tampered:
    """Weights of which some are others'."""

    def __init__(self, weights: Weights, instead: Mapping[str, str]) -> None:
        self.shapes, self.stored_types = weights.shapes, weights.stored_types
        self._weights, self._instead = weights, instead

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return self._weights.read_rows(self._instead.get(name, name), start, stop)


def block(number: int, name: str) -> str:
    return f"model.layers.{number}.{name}.weight"


DAMAGES: dict[str, dict[str, str]] = {
    "a block of other weights": {block(1, "mlp.up_proj"): block(2, "mlp.up_proj")},
    "keys for values": {block(0, "self_attn.v_proj"): block(0, "self_attn.k_proj")},
    "gate for up": {block(2, "mlp.gate_proj"): block(2, "mlp.up_proj")},
    "the norms of a block": {block(0, "input_layernorm"): block(0, "post_attention_layernorm")},
    "the final norm": {"model.norm.weight": block(0, "input_layernorm")},
    "the head is not the embedding": {HEAD: EMBEDDING},
}


@pytest.mark.parametrize("instead", DAMAGES.values(), ids=DAMAGES)
def test_the_comparison_notices_another_tensor(
    instead: dict[str, str],
    make_model: Callable[..., Transformer],
    store: Callable[..., StoredModel],
    tokens_BT: Tensor,
) -> None:
    model = make_model(tie_word_embeddings=False)
    stored = store(model)
    assert_same(stored, model, tokens_BT)
    with pytest.raises(AssertionError):
        assert_same(dataclasses.replace(stored, weights=Tampered(stored.weights, instead)), model, tokens_BT)


def test_the_comparison_notices_a_lost_block_and_positions_that_are_not_stretched(
    make_model: Callable[..., Transformer], store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    model = make_model(rope_scaling=RopeScaling("linear", 4.0))
    stored = store(model)
    for other in ({"num_hidden_layers": 2}, {"rope_scaling": None}, {"rms_norm_eps": 1e-5}):
        with pytest.raises(AssertionError):
            assert_same(
                dataclasses.replace(stored, config=dataclasses.replace(stored.config, **other)), model, tokens_BT
            )


# Memory


class Watched:
    """Weights that tell which were read, and how many blocks' were in memory at once."""

    def __init__(self, weights: Weights) -> None:
        self.shapes, self.stored_types = weights.shapes, weights.stored_types
        self._weights = weights
        self._held: list[tuple[str, StorageWeakRef]] = []
        self.reads: list[tuple[str, int, int | None]] = []
        self.most_blocks = 0

    def read_rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        self.reads.append((name, start, stop))
        rows_RC = self._weights.read_rows(name, start, stop).clone()
        self._held = [(held, storage) for held, storage in self._held if not storage.expired()]
        self._held.append((name, StorageWeakRef(rows_RC.untyped_storage())))
        blocks = {held.split(".")[2] for held, _ in self._held if held.startswith("model.layers.")}
        self.most_blocks = max(self.most_blocks, len(blocks))
        return rows_RC


def test_one_block_is_held_at_a_time_and_every_tensor_read_once(
    make_model: Callable[..., Transformer], store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    stored = store(make_model(tie_word_embeddings=False, num_hidden_layers=5))
    watched = Watched(stored.weights)
    counted = 0

    def count() -> None:
        nonlocal counted
        counted += 1

    hidden_BTD = hidden_states(dataclasses.replace(stored, weights=watched), tokens_BT, count)
    assert counted == 5
    assert watched.most_blocks == 1
    whole = [name for name, _, _ in watched.reads if name != EMBEDDING]
    assert sorted(whole) == sorted(set(stored.names) - {EMBEDDING, HEAD})
    rows = [start for name, start, stop in watched.reads if name == EMBEDDING and stop == start + 1]
    assert rows == sorted(set(tokens_BT.flatten().tolist())), "a row of the embedding is read only if its token occurs"
    watched.reads.clear()
    logits(dataclasses.replace(stored, weights=watched), hidden_BTD[0])
    assert [name for name, _, _ in watched.reads] == [HEAD]


def test_the_watch_notices_who_holds_two_blocks(tiny_model: Transformer, store: Callable[..., StoredModel]) -> None:
    stored = store(tiny_model)
    watched = Watched(stored.weights)
    kept = [watched.read_rows(block(number, "mlp.up_proj")) for number in range(2)]
    assert watched.most_blocks == 2 == len(kept)
