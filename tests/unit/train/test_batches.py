"""From windows to tensors: nothing lost, nothing padded, and no document that sees another.

B rows, L tokens a row, D hidden size
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from fox.formats.token_shards import Shard
from fox.model import Transformer
from fox.model.loss import IGNORED, summed_loss
from fox.train.batches import Batch, Stream, make_batch
from fox.train.curriculum import Window
from tests.unit.train.micro_training import shard_of

LENGTHS = [3, 9, 2, 17, 5, 30, 4]


def documents_of(ids: np.ndarray, numbers: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(ids[numbers == number].tolist()) for number in dict.fromkeys(numbers.tolist())]


def written(shard: Shard) -> list[tuple[int, ...]]:
    return [tuple(tokens.tolist()) for tokens, _ in shard.documents()]


@pytest.fixture
def stream(make_shard: Callable[..., Shard]) -> Stream:
    return Stream("chats", make_shard("chats", LENGTHS, with_loss_mask=True), seed=4)


def test_each_epoch_has_each_document_once_in_an_order_of_its_own(stream: Stream) -> None:
    epochs = []
    for epoch in range(4):
        ids, numbers, _ = stream.read(epoch * stream.epoch_tokens, stream.epoch_tokens)
        epochs.append(documents_of(ids, numbers))
        assert sorted(epochs[-1]) == sorted(written(stream.shard))
        assert numbers.tolist() == sorted(numbers.tolist())
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_other_seeds_and_names_have_other_orders(stream: Stream) -> None:
    others = [Stream("chats", stream.shard, seed=5), Stream("others", stream.shard, seed=4)]
    for other in others:
        assert other.read(0, 70)[0].tolist() != stream.read(0, 70)[0].tolist()


@given(data=st.data())
def test_any_piece_is_as_it_is_in_the_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shard = shard_of(tmp_path_factory.mktemp("shard") / "s.ds", LENGTHS, with_loss_mask=True)
    stream = Stream("chats", shard, seed=4)
    total = 3 * stream.epoch_tokens
    start = data.draw(st.integers(0, total - 1))
    length = data.draw(st.integers(1, total - start))
    for whole, part in zip(Stream("chats", shard, 4).read(0, total), stream.read(start, length), strict=True):
        np.testing.assert_array_equal(whole[start : start + length], part)


def test_documents_on_both_sides_of_an_epochs_seam_are_two_even_where_they_are_the_same(
    make_shard: Callable[..., Shard],
) -> None:
    stream = Stream("one", make_shard("one", [6]), seed=0)
    ids, numbers, _ = stream.read(0, 18)
    assert tuple(ids.tolist()) == written(stream.shard)[0] * 3
    assert numbers.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    batch = make_batch([[Window("one", 0, 12)]], {"one": stream}, learn_marked_only=False)
    assert batch.target_BL[0, 5] == IGNORED == batch.target_BL[0, 11]
    assert batch.segment_BL.tolist() == [[0] * 6 + [1] * 6]


@pytest.mark.parametrize("learn_marked_only", [False, True])
def test_a_target_is_the_next_token_of_the_same_document_or_none(stream: Stream, learn_marked_only: bool) -> None:
    rows = [[Window("chats", 0, 20), Window("chats", 47, 20)], [Window("chats", 60, 20), Window("chats", 120, 20)]]
    batch = make_batch(rows, {"chats": stream}, learn_marked_only)
    assert batch.token_BL.shape == batch.target_BL.shape == batch.segment_BL.shape == (2, 40)
    ids, numbers, learnt = stream.read(0, 200)
    expected = []
    for place in (place for row in rows for window in row for place in range(window.start, window.start + 20)):
        same = numbers[place] == numbers[place + 1]
        wanted = same and (learnt[place + 1] or not learn_marked_only)
        expected.append(ids[place + 1] if wanted else IGNORED)
    assert batch.target_BL.flatten().tolist() == expected
    assert batch.num_targets == sum(target != IGNORED for target in expected)
    assert 0 < batch.num_targets < 80


def test_no_token_is_padding_every_one_is_of_the_stream(stream: Stream) -> None:
    rows = [[Window("chats", start, 10) for start in (0, 30, 60)], [Window("chats", 65, 30)]]
    batch = make_batch(rows, {"chats": stream}, learn_marked_only=False)
    ids = stream.read(0, 100)[0]
    assert batch.token_BL[0].tolist() == [*ids[0:10], *ids[30:40], *ids[60:70]]
    assert batch.token_BL[1].tolist() == [*ids[65:95]]


def test_segments_part_documents_and_chunks(stream: Stream) -> None:
    row = [Window("chats", 0, 20), Window("chats", 20, 20)]  # neighbours in the stream, and still two chunks
    segments = make_batch([row], {"chats": stream}, learn_marked_only=False).segment_BL[0].tolist()
    numbers = stream.read(0, 40)[1]
    parts = [numbers[at] != numbers[at - 1] or at == 20 for at in range(1, 40)]
    assert segments[0] == 0
    assert [segments[at] - segments[at - 1] for at in range(1, 40)] == [int(part) for part in parts]


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
def packed(stream: Stream) -> Batch:
    rows = [[Window("chats", 0, 24), Window("chats", 50, 24)], [Window("chats", 24, 48)]]
    return make_batch(rows, {"chats": stream}, learn_marked_only=False)


def test_a_packed_rows_loss_is_that_of_its_documents_alone(packed: Batch, make_model: Callable[..., Any]) -> None:
    model = make_model(vocab_size=60)
    assert_close(loss_of(model, packed), loss_alone(model, packed), rtol=1e-5, atol=0)


def test_that_comparison_notices_lost_segments(packed: Batch, make_model: Callable[..., Any]) -> None:
    model = make_model(vocab_size=60)
    with pytest.raises(AssertionError):
        assert_close(loss_of(model, packed, see_all=True), loss_alone(model, packed), rtol=1e-5, atol=0)
