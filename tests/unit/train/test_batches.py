"""From chunks to tensors: nothing lost, nothing learnt from padding, and no document that sees another.

B rows, L tokens a row, D hidden size
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import fox.train.packer as packer
from fox.formats.token_shards import Shard
from fox.model import Transformer
from fox.model.loss import IGNORED, summed_loss
from fox.train.batches import Batch, make_batch
from fox.train.curriculum import Row, StageOrder, curriculum
from fox.train.packer import Limit
from fox.train.packing import Packing, packing
from tests.unit.train.micro_training import recipe_of

LENGTHS = [3, 9, 2, 17, 5, 30, 4, 41, 8, 6]


def index_of(folder: Path, shard: Shard, chunk_length: Any, chunks: int, cut: bool) -> tuple[StageOrder, Packing]:
    """Rows of 24 tokens, packed from the only source; with `cut`, its documents are cut to fill chunks."""
    stage = {"tokens": chunks * 24, "chunk_length": chunk_length, "rows": 1, "batch_tokens": 24, "mix": {"chats": 1.0}}
    recipe = recipe_of(source={"chats": {"path": "x", "kind": "chat"}}, stage={"only": stage}, tune=None)
    orders = curriculum(recipe, recipe.stage, {"chats": len(shard.tokens)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packer, "may_cut", lambda _: cut)
        return orders[0], packing(folder, orders, {"chats": shard}, Limit("train.max_epochs", 9.0))


@pytest.fixture
def chats(make_shard: Callable[..., Shard]) -> Shard:
    return make_shard("chats", LENGTHS, with_loss_mask=True)


@pytest.fixture(params=["whole", "cut"])
def rows_and_index(request: pytest.FixtureRequest, chats: Shard, tmp_path: Path) -> tuple[list[Row], Packing]:
    """Eight rows of chunks of 24 and of 12, from two epochs."""
    order, index = index_of(tmp_path / "index", chats, {"24": 1, "12": 1}, 8, request.param == "cut")
    return [row for step in range(order.steps) for row in order.rows_of_step(step)], index


def expected(shard: Shard, row: Row, index: Packing, learn_marked_only: bool) -> tuple[list[int], list[int], list[int]]:
    """A row by its definition, token by token; a token of padding is -1 here."""
    tokens, targets, segments, segment = [], [], [], -1
    learnt = shard.is_learnt
    assert learnt is not None
    for chunk in row:
        begin = len(tokens)
        for start, length in zip(*index.pieces(chunk), strict=True):
            segment += 1
            for place in range(start, start + length):
                ends_document = place + 1 in shard.ends
                wanted = not ends_document and (learnt[place + 1] or not learn_marked_only)
                tokens.append(int(shard.tokens[place]))
                targets.append(int(shard.tokens[place + 1]) if wanted else IGNORED)
                segments.append(segment)
        segment += 1
        room = chunk.lane.length - (len(tokens) - begin)
        tokens += [-1] * room
        targets += [IGNORED] * room
        segments += [segment] * room
    return tokens, targets, segments


@pytest.mark.parametrize("learn_marked_only", [False, True])
def test_rows_are_what_the_index_says(
    rows_and_index: tuple[list[Row], Packing], chats: Shard, learn_marked_only: bool, request: pytest.FixtureRequest
) -> None:
    rows, index = rows_and_index
    batch = make_batch(rows, index, learn_marked_only)
    padding = 0
    assert batch.token_BL.shape == batch.target_BL.shape == batch.segment_BL.shape == (8, 24)
    for at, row in enumerate(rows):
        tokens, targets, segments = expected(chats, row, index, learn_marked_only)
        assert batch.target_BL[at].tolist() == targets
        assert batch.segment_BL[at].tolist() == segments
        got = batch.token_BL[at].tolist()
        assert [-1 if wanted == -1 else token for token, wanted in zip(got, tokens, strict=True)] == tokens
        padding += tokens.count(-1)
    assert batch.num_targets == int((batch.target_BL != IGNORED).sum()) > 50
    assert (padding > 0) is ("whole" in request.node.name), "documents are cut so that none is left"


def test_the_last_token_of_a_cut_piece_learns_the_first_of_the_next(make_shard: Callable[..., Shard], tmp_path: Path) -> None:  # fmt: skip
    shard = make_shard("chats", [60], with_loss_mask=True)
    order, index = index_of(tmp_path / "index", shard, 24, 3, cut=False)
    rows = [row for step in range(order.steps) for row in order.rows_of_step(step)]
    batch = make_batch(rows, index, learn_marked_only=False)
    by_start = {int(index.pieces(row[0])[0][0]): at for at, row in enumerate(rows)}
    assert sorted(by_start) == [0, 24, 48]
    assert (
        batch.target_BL[by_start[0], -1] == shard.tokens[24] and batch.target_BL[by_start[24], -1] == shard.tokens[48]
    )
    last = by_start[48]
    assert batch.target_BL[last, 11:].tolist() == [IGNORED] * 13
    assert batch.segment_BL[last].tolist() == [0] * 12 + [1] * 12


def test_a_chunk_at_an_epochs_end_begins_the_next(make_shard: Callable[..., Shard], tmp_path: Path) -> None:
    shard = make_shard("chats", [60])
    order, index = index_of(tmp_path / "index", shard, 24, 3, cut=True)
    rows = [row for step in range(order.steps) for row in order.rows_of_step(step)]
    assert [row[0].number for row in rows] == [0, 1, 2]
    batch = make_batch(rows, index, learn_marked_only=False)
    assert batch.token_BL[2].tolist() == [*shard.tokens[48:], *shard.tokens[:12]]
    assert batch.segment_BL[2].tolist() == [0] * 12 + [1] * 12
    assert batch.target_BL[2].tolist() == [*shard.tokens[49:], IGNORED, *shard.tokens[1:13]]


def loss_of(model: Transformer, batch: Batch, see_all: bool = False) -> torch.Tensor:
    hidden_BLD = model(batch.token_BL, torch.zeros_like(batch.segment_BL) if see_all else batch.segment_BL)
    return summed_loss(hidden_BLD.flatten(0, 1), model.output_weight_VD, batch.target_BL.flatten())


def loss_alone(model: Transformer, batch: Batch) -> torch.Tensor:
    """Each document of each chunk in a pass of its own, without any mask but the causal one."""
    total = torch.zeros(())
    for tokens_L, targets_L, segments_L in zip(batch.token_BL, batch.target_BL, batch.segment_BL, strict=True):
        for segment in segments_L.unique():
            mine = segments_L == segment
            hidden_BLD = model(tokens_L[mine][None])
            total = total + summed_loss(hidden_BLD[0], model.output_weight_VD, targets_L[mine])
    return total


@pytest.fixture
def packed(rows_and_index: tuple[list[Row], Packing]) -> Batch:
    rows, index = rows_and_index
    return make_batch(rows, index, learn_marked_only=False)


def test_a_packed_rows_loss_is_that_of_its_documents_alone(packed: Batch, make_model: Callable[..., Any]) -> None:
    model = make_model(vocab_size=60)
    assert_close(loss_of(model, packed), loss_alone(model, packed), rtol=1e-5, atol=0)


def test_that_comparison_notices_lost_segments(packed: Batch, make_model: Callable[..., Any]) -> None:
    model = make_model(vocab_size=60)
    with pytest.raises(AssertionError):
        assert_close(loss_of(model, packed, see_all=True), loss_alone(model, packed), rtol=1e-5, atol=0)
