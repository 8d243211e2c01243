"""The index of packed documents: each token once before any again, no bin over-full, the same for any number of workers, and hashed."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fox.train.packer as packer
import fox.train.packing as packing_module
import fox.train.stock as stock
from fox.artifacts import PARTIAL, sha256_of
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.recipe import Recipe
from fox.train.curriculum import Chunk, Lane, StageOrder, curriculum
from fox.train.packer import Limit
from fox.train.packing import Packing, packing
from fox.train.pieces import MOST_WASTE
from tests.unit.train.micro_training import recipe_of, shard_of

NO_LIMIT = Limit("train.max_epochs", 1e9)


def one_lane(chunks: int, length: int, **other: Any) -> Recipe:
    """A stage of so many chunks of the only source, one a step."""
    stage = {"tokens": chunks * length, "chunk_length": length, "rows": 1, "batch_tokens": length, "mix": {"a": 1.0}}
    return recipe_of(source={"a": {"path": "a"}}, stage={"only": {**stage, **other}}, tune=None)


def packed(folder: Path, recipe: Recipe, shards: dict[str, Shard], limit: Limit = NO_LIMIT, workers: int = 1) -> tuple[list[StageOrder], Packing]:  # fmt: skip
    orders = curriculum(recipe, recipe.stage, {name: len(shard.tokens) for name, shard in shards.items()})
    return orders, packing(folder, orders, shards, limit, workers=workers)


def spans(index: Packing, order: StageOrder, lane: Lane, first: int = 0) -> list[list[tuple[int, int]]]:
    """Each chunk of a lane in turn, as the spans of the shard that are in it."""
    found = []
    for number in range(first, order.chunks_of(lane)):
        starts, lengths = index.pieces(Chunk(order.name, lane, number))
        found.append([(start, start + length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)])
    return found


def times_read(index: Packing, orders: Sequence[StageOrder]) -> dict[str, Any]:
    """How often each token of each source is read by some stages."""
    times = {name: np.zeros(len(shard.tokens), dtype=int) for name, shard in index.shards.items()}
    for order in orders:
        for lane in order.lanes:
            for chunk in spans(index, order, lane):
                for start, end in chunk:
                    times[lane.source][start:end] += 1
    return times


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=60)


@settings(deadline=None)
@given(lengths=LENGTHS, capacity=st.sampled_from([8, 16, 32]), group=st.sampled_from([3, 10, 1000]), cut=st.booleans())
def test_bins_are_not_over_full_and_have_every_token_once_before_any_again(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], capacity: int, group: int, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    shard = shard_of(folder / "a.ds", lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stock, "GROUP_DOCUMENTS", group)
        patch.setattr(packer, "may_cut", lambda _: cut)
        (order,), index = packed(folder / "index", one_lane(2 * sum(lengths), capacity), {"a": shard})
    lane = Lane("a", capacity)
    times = np.zeros(len(shard.tokens), dtype=int)
    last = 0
    for number, chunk in enumerate(spans(index, order, lane)):
        epoch, again = index.epoch_of(Chunk("only", lane, number))
        assert not again and last <= epoch
        last = epoch
        assert 0 < sum(end - start for start, end in chunk) <= capacity
        for start, end in chunk:  # of one document, and not cut where it need not be
            times[start:end] += 1
            begin, stop = shard.span(int(np.searchsorted(shard.ends, start, side="right")))
            assert end <= stop
            assert cut or ((start - begin) % capacity == 0 and (end == stop or end - start == capacity))
        assert times.max() - times.min() <= 1, "nothing is read again before all was read as often"
    if cut:
        assert times.min() >= 1 and index.facts[0]["waste"] <= MOST_WASTE + 1e-6, "however small the source"


@settings(deadline=None, max_examples=25)
@given(lengths=LENGTHS, data=st.data())
def test_what_is_told_of_a_lane_is_what_it_holds(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    shard = shard_of(folder / "a.ds", lengths)
    chunks = data.draw(st.integers(1, max(1, sum(lengths) // 16)))
    (order,), index = packed(folder / "index", one_lane(chunks, 16), {"a": shard})
    (told,) = index.facts
    pieces = [piece for chunk in spans(index, order, Lane("a", 16)) for piece in chunk]
    if len(told["parts"]) == 1 and "pieces" not in told["parts"][0]:  # of one epoch
        documents = [(int(np.searchsorted(shard.ends, start, side="right")), end - start) for start, end in pieces]
        whole = {at for at, tokens in documents if tokens == lengths[at]}
        assert told["documents_whole"] == len(whole)
        assert told["documents_cut"] == len({at for at, _ in documents} - whole)
    assert told["tokens"] == sum(end - start for start, end in pieces) and told["pieces"] == len(pieces)
    assert told["padding"] == told["bins"] * 16 - told["tokens"]
    assert told["waste"] == pytest.approx(told["padding"] / told["bins"] / 16, abs=1e-6)


MANY = {"b": {"16": 1, "32": 1}, "a": {"8": 0.2, "16": 0.5, "32": 0.3}}


def many_lanes() -> Recipe:
    """Two stages, five lanes; sources that come to an end in the middle of each."""
    stage = {"rows": 4, "batch_tokens": 128, "chunk_length": MANY, "mix": {"a": 2.0, "b": 1.0}}
    stages = {"one": {"tokens": 9_000, **stage}, "two": {"tokens": 12_000, **stage}}
    return recipe_of(source={"a": {"path": "a"}, "b": {"path": "b"}}, stage=stages, tune=None)


@pytest.fixture
def two(make_shard: Callable[..., Shard]) -> dict[str, Shard]:
    dice = np.random.default_rng(0)
    return {name: make_shard(name, dice.integers(2, 60, count).tolist()) for name, count in (("a", 260), ("b", 120))}


def test_any_number_of_workers_makes_the_same_index(
    two: dict[str, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "GROUP_DOCUMENTS", 12)
    for workers in (1, 2, 3):
        packed(tmp_path / f"{workers}", many_lanes(), two, workers=workers)
    one = files_of(tmp_path / "1")
    assert len(one) == 2 * 5 * 3 + 1
    assert files_of(tmp_path / "2") == one == files_of(tmp_path / "3")


def test_lanes_of_a_source_share_its_documents_and_stages_go_on_where_the_last_ended(
    two: dict[str, Shard], tmp_path: Path
) -> None:
    orders, index = packed(tmp_path / "index", many_lanes(), two)
    for source, shard in two.items():
        times = np.zeros(len(shard.tokens), dtype=int)
        for order in orders:
            times += times_read(index, [order])[source]
            assert times.max() > 0 and times.max() - times.min() <= 1
        assert index.epochs[source] == pytest.approx(times.mean(), abs=0.1)


def test_waste_is_below_a_percent_where_there_are_documents_enough(tmp_path: Path) -> None:
    dice = np.random.default_rng(1)
    shard = shard_of(tmp_path / "a.ds", np.maximum(4, dice.lognormal(4.0, 0.8, 3000)).astype(int).tolist())
    for length in (64, 256, 512):
        chunks = int(1.5 * len(shard.tokens)) // length
        _, index = packed(tmp_path / f"{length}", one_lane(chunks, length), {"a": shard})
        assert index.facts[0]["waste"] < 0.01


def chats_of(folder: Path, tune: bool) -> tuple[dict[str, Any], list[list[tuple[int, int]]], Shard]:
    """Documents of which no two and a half fill a chunk, in a stage or a tuning."""
    folder.mkdir()
    shard = shard_of(folder / "a.ds", np.random.default_rng(2).integers(150, 260, 2000).tolist())
    stage = {"tokens": 512 * 600, "chunk_length": 512, "rows": 1, "batch_tokens": 512, "mix": {"a": 1.0}}
    how = {"optimizer": {"peak_learning_rate": 1e-3}, "schedule": {"warmup_tokens": 0}}
    recipe = recipe_of(source={"a": {"path": "a"}}, stage={"only": stage}, tune={**stage, **how})
    orders = curriculum(recipe, {"tune": recipe.tune} if tune else recipe.stage, {"a": len(shard.tokens)})  # type: ignore[dict-item]
    index = packing(folder / f"{tune}", orders, {"a": shard}, NO_LIMIT)
    return dict(index.facts[0]), spans(index, orders[0], Lane("a", 512)), shard


def test_documents_that_leave_much_room_are_cut_in_pretraining_and_whole_in_tuning(tmp_path: Path) -> None:
    whole, _, _ = chats_of(tmp_path / "tune", tune=True)
    assert whole["documents_cut"] == 0 and whole["waste"] > 0.03  # told, and accepted
    cut, chunks, shard = chats_of(tmp_path / "stage", tune=False)
    assert cut["waste"] < MOST_WASTE
    assert cut["documents_whole"] > 0.85 * (cut["documents_whole"] + cut["documents_cut"])
    pieces = sorted(piece for chunk in chunks for piece in chunk)
    assert all(end <= start for (_, end), (start, _) in pairwise(pieces))
    assert all(shard.span(int(np.searchsorted(shard.ends, start, side="right")))[1] >= end for start, end in pieces)


def test_what_a_stage_leaves_over_is_the_first_that_the_next_one_gets(tmp_path: Path) -> None:
    """In two stages of a bit less than half an epoch each, and in one, nothing is seen twice and hardly anything is lost."""
    dice = np.random.default_rng(3)
    shard = shard_of(tmp_path / "a.ds", dice.integers(20, 120, 400).tolist())
    stage = {"tokens": 64 * 200, "chunk_length": 64, "rows": 1, "batch_tokens": 64, "mix": {"a": 1.0}}
    recipe = recipe_of(source={"a": {"path": "a"}}, stage={"one": stage, "two": stage}, tune=None)
    orders, index = packed(tmp_path / "index", recipe, {"a": shard})
    first, second = index.facts
    assert first["documents_left_over"] > 0
    seen = np.zeros(len(shard.tokens), dtype=int)
    for order in orders:
        for chunk in spans(index, order, Lane("a", 64)):
            for start, end in chunk:
                seen[start:end] += 1
    assert seen.max() == 1
    taken = round(index.epochs["a"] * len(shard))
    order_of_documents = stock.Stock("a", shard, recipe.seed).group(0, len(shard), [], {0: 1.0}, {})
    of_taken = [(start, start + length) for start, length in zip(order_of_documents.pieces.starts[:taken], order_of_documents.pieces.lengths[:taken], strict=True)]  # fmt: skip
    unseen = sum(bool((seen[start:end] == 0).any()) for start, end in of_taken)
    assert unseen <= second["documents_left_over"]


def test_a_lane_that_runs_out_begins_anew_in_another_order(two: dict[str, Shard], tmp_path: Path) -> None:
    (order, _), index = packed(tmp_path / "index", many_lanes(), two)
    lane = Lane("b", 16)
    bins = order.chunks_of(lane)
    turns = []
    for turn in range(3):
        numbers = range(turn * bins, (turn + 1) * bins)
        assert {index.epoch_of(Chunk("one", lane, number))[1] for number in numbers} == {turn > 0}
        turns.append([tuple(index.pieces(Chunk("one", lane, number))[0].tolist()) for number in numbers])
    assert sorted(turns[0]) == sorted(turns[1]) == sorted(turns[2])
    assert turns[0] != turns[1] != turns[2] != turns[0]


def test_a_source_that_would_be_seen_too_often_is_an_error_with_a_mend(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.ds", [10] * 20)
    recipe = one_lane(100, 10)
    with pytest.raises(UserError) as error:
        packed(tmp_path / "index", recipe, {"a": shard}, Limit("train.max_epochs", 4.0))
    (problem,) = error.value.problems
    assert (problem.key, problem.value) == ("train.max_epochs", 4.0)
    assert "source a has 200 tokens, and would be seen about 5.0 times" in problem.problem
    assert "-o train.max_epochs=5" in problem.mend and not (tmp_path / "index").exists()
    _, index = packed(tmp_path / "index", recipe, {"a": shard}, Limit("train.max_epochs", 5.0))
    assert index.epochs == {"a": 5.0}


def test_an_index_is_made_again_only_when_what_it_is_made_of_has_changed(two: dict[str, Shard], tmp_path: Path) -> None:
    recipe = many_lanes()
    packed(tmp_path / "index", recipe, two)
    made = (tmp_path / "index/manifest.json").stat().st_mtime_ns
    packed(tmp_path / "index", recipe, two)
    assert (tmp_path / "index/manifest.json").stat().st_mtime_ns == made
    before = files_of(tmp_path / "index")
    packed(tmp_path / "index", recipe.model_copy(update={"seed": 8}), two)
    assert files_of(tmp_path / "index").keys() == before.keys() and files_of(tmp_path / "index") != before
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(PARTIAL)]


@pytest.mark.parametrize("array", ["starts", "lengths", "ends"])
def test_a_damaged_index_is_refused(two: dict[str, Shard], tmp_path: Path, array: str) -> None:
    packed(tmp_path / "index", many_lanes(), two)
    path = tmp_path / f"index/lanes/two/a.16.{array}.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(Failure, match=rf"a\.16\.{array}\.npy: is damaged\. Remove .*index and run the same command"):
        packed(tmp_path / "index", many_lanes(), two)
    path.unlink()
    with pytest.raises(Failure, match="is damaged"):
        packed(tmp_path / "index", many_lanes(), two)


@pytest.mark.parametrize("damage", ["{", "[]", '{"made_of": 1}', "changed"])
def test_a_damaged_manifest_is_refused(two: dict[str, Shard], tmp_path: Path, damage: str) -> None:
    packed(tmp_path / "index", many_lanes(), two)
    path = tmp_path / "index/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["lanes"][0]["parts"][0]["bins"] += 1
    path.write_text(json.dumps(manifest) if damage == "changed" else damage)
    with pytest.raises(Failure, match=r"manifest\.json: is damaged"):
        packed(tmp_path / "index", many_lanes(), two)


def test_of_many_that_ask_at_once_one_makes_it(two: dict[str, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    made: list[int] = []
    make = packing_module.make_lanes
    monkeypatch.setattr(packing_module, "make_lanes", lambda *given: made.append(1) or make(*given))
    found: list[Packing] = []
    asking = [
        threading.Thread(target=lambda: found.append(packed(tmp_path / "index", many_lanes(), two)[1]))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(found) == 4 and made == [1]


def test_a_lock_that_another_machine_has_removed_meanwhile_is_made_anew(
    two: dict[str, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS tells it, once."""
    lock = packing_module.fcntl.flock
    stale = [OSError(errno.ESTALE, "Stale file handle")]

    def locked(descriptor: int, how: int) -> None:
        if stale:
            raise stale.pop()
        lock(descriptor, how)

    monkeypatch.setattr(packing_module.fcntl, "flock", locked)
    assert packed(tmp_path / "index", many_lanes(), two)[1].lanes and not stale


def test_a_limit_that_is_lowered_later_holds_for_an_index_that_is_there(two: dict[str, Shard], tmp_path: Path) -> None:
    recipe = many_lanes()
    _, index = packed(tmp_path / "index", recipe, two)
    before = files_of(tmp_path / "index")
    most = max(index.epochs.values())
    seen_most = max(index.epochs, key=lambda name: index.epochs[name])
    packed(tmp_path / "index", recipe, two, Limit("train.max_epochs", most))
    lower = most - 3 / len(two[seen_most])
    for folder in ("index", "new"):  # as at the start
        with pytest.raises(UserError, match=rf"source {seen_most} has .* stage two comes to the end") as error:
            packed(tmp_path / folder, recipe, two, Limit("train.max_epochs", lower))
        assert error.value.problems[0].value == lower
    with pytest.raises(UserError, match=r"stage one comes to the end"):
        packed(tmp_path / "index", recipe, two, Limit("train.max_epochs", 0.2))
    assert files_of(tmp_path / "index") == before


def test_a_run_that_may_begin_may_go_on(tmp_path: Path) -> None:
    """The index has epochs of a few digits: two thirds of one, exactly, are not more than two thirds."""
    shard = shard_of(tmp_path / "a.ds", [16] * 3)
    limit = Limit("train.max_epochs", 2 / 3)
    for _ in range(2):
        _, index = packed(tmp_path / "index", one_lane(2, 16), {"a": shard}, limit)
    assert index.epochs["a"] > limit.epochs
