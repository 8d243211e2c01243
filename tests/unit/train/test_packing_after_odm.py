"""Stages after one whose mixture followed the loss: they take up each source where that one really left it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fox.train.packing as packing_module
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.recipe import Recipe
from fox.train.curriculum import Chunk, StageOrder, curriculum
from fox.train.events import write_events
from fox.train.mixing import Mixtures
from fox.train.packer import Limit
from fox.train.packing import Packing, open_packing, packing
from fox.train.pieces import Pieces
from fox.train.readings import readings, times_seen
from fox.train.stages import pack, what_was_read
from fox.train.stock import joined
from tests.unit.train.micro_training import recipe_of, shard_of

SIZES = {"a": 6000, "b": 6000}
ONE, TWO, FOUR = (Limit("train.max_epochs", epochs) for epochs in (1.0, 2.0, 4.0))


def recipe_with(*stages: dict[str, Any]) -> Recipe:
    """Stages one, two, ... of 5,376 tokens: 0.45 epochs of each source, in 84 steps of 4 rows."""
    base = {"tokens": 5376, "chunk_length": 16, "rows": 4, "batch_tokens": 64, "mix": {"a": 1.0, "b": 1.0}}
    names = ["one", "two", "three"]
    return recipe_of(
        source={"a": {"path": "a"}, "b": {"path": "b"}},
        stage={name: {**base, **stage} for name, stage in zip(names, stages, strict=False)},
        tune=None,
    )


FOLLOWS = {"mix_follows": "odm", "mix_every_steps": 7}
LONGER = {"chunk_length": {"8": 1, "32": 3}, "rows": 2}


def mixed(step: int, stage: str, a: float) -> dict[str, Any]:
    return {"event": "mix", "step": step, "stage": stage, "mix": {"a": a, "b": 1 - a}, "rewards": {}}


RECORD = [mixed(8, "one", 0.7), mixed(43, "one", 0.45)]


@pytest.fixture
def two(tmp_path: Path) -> dict[str, Shard]:
    return shards_in(tmp_path)


def shards_in(folder: Path, sizes: dict[str, int] = SIZES) -> dict[str, Shard]:
    """Documents of 2 to 50 tokens, and a last one that brings each source to its size."""
    shards = {}
    for name, size in sizes.items():
        lengths = np.random.default_rng(len(name) + size).integers(2, 50, size // 26).tolist()
        while sum(lengths) > size - 2:
            lengths.pop()
        shards[name] = shard_of(folder / f"{name}.ds", [*lengths, size - sum(lengths)])
    return shards


def orders_of(recipe: Recipe, shards: dict[str, Shard]) -> list[StageOrder]:
    return curriculum(recipe, recipe.stage, {name: len(shard.tokens) for name, shard in shards.items()})


def gone(orders: Sequence[StageOrder], events: Sequence[dict[str, Any]]) -> dict[str, StageOrder]:
    return {order.name: order.after(events) for order in orders}


def packed(folder: Path, recipe: Recipe, shards: dict[str, Shard], events: Sequence[dict[str, Any]], limit: Limit, workers: int = 1) -> tuple[list[StageOrder], Packing]:  # fmt: skip
    """All stages, and their orders as they went."""
    orders = orders_of(recipe, shards)
    index = packing(folder, orders, shards, limit, workers=workers)
    went = gone(orders, events)
    for order in orders:
        index.reach(order.name, went)
    return list(went.values()), index


def times_read(index: Packing, order: StageOrder, source: str) -> Any:
    """How often a stage reads each token of a source, chunk for chunk in the steps' order."""
    times = np.zeros(len(index.shards[source].tokens), dtype=int)
    for step in range(order.steps):
        for row in order.rows_of_step(step):
            for chunk in row:
                if chunk.lane.source == source:
                    for start, length in zip(*index.pieces(chunk), strict=True):
                        times[start : start + length] += 1
    return times


@pytest.mark.parametrize("second", [{}, LONGER, {"chunk_length": 64, "rows": 1}])
def test_nothing_is_read_twice_within_an_epoch_whatever_the_loss_did(
    two: dict[str, Shard], tmp_path: Path, second: dict[str, Any]
) -> None:
    went, index = packed(tmp_path / "index", recipe_with(FOLLOWS, second), two, RECORD, ONE)
    assert went[0].tokens_given(84) != {"a": 2688, "b": 2688}, "the mixture did change"
    told = readings(index, went)
    for source in two:
        times = times_read(index, went[0], source) + times_read(index, went[1], source)
        never, once = (times == 0).mean(), (times == 1).mean()
        assert times.max() == 1
        assert told["seen"][source] == pytest.approx([never, once], abs=1e-4)
        assert told["epochs"][source] == pytest.approx(once, abs=1e-4)
        room = sum(order.tokens_given(84)[source] for order in went) / len(times)
        assert 0.985 * room < once <= room


def test_every_epoch_is_read_to_its_end_before_the_next_over_many_stages(tmp_path: Path) -> None:
    """Sources of which a stage reads one and more, the last chunks of an epoch with the first of the next."""
    shards = shards_in(tmp_path, {"a": 1900, "b": 3100})
    events = [*RECORD, mixed(85 + 21, "two", 0.2), mixed(85 + 63, "two", 0.65)]
    went, index = packed(tmp_path / "index", recipe_with(FOLLOWS, FOLLOWS, LONGER), shards, events, Limit("", 9.0))
    for source in shards:
        times = np.zeros(len(shards[source].tokens), dtype=int)
        for order in went:
            times += times_read(index, order, source)
            assert times.max() - times.min() <= 1, order.name
        assert times.max() >= 3


def test_what_is_left_is_told_of_a_bin_at_an_epochs_end(tmp_path: Path) -> None:
    """A source of less than a chunk: each of its bins is of several epochs, and the next stage begins with the first that was not read."""
    shards = shards_in(tmp_path, {"a": 40, "b": 6000})
    recipe = recipe_with({**FOLLOWS, "chunk_length": 64, "rows": 1}, {"chunk_length": 64, "rows": 1})
    went, index = packed(tmp_path / "index", recipe, shards, [mixed(8, "one", 0.4)], Limit("", 999.0))
    times = np.zeros(40, dtype=int)
    for order in went:
        times += times_read(index, order, "a")
        assert times.max() - times.min() <= 1
    assert times.mean() > 50


def test_the_index_is_a_function_of_the_record_for_any_workers_and_at_any_time(
    two: dict[str, Shard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fox.train.stock.GROUP_DOCUMENTS", 12)
    recipe = recipe_with(FOLLOWS, LONGER)
    contents = []
    for workers in (1, 2):
        _, index = packed(tmp_path / f"{workers}", recipe, two, RECORD, ONE, workers)
        files = sorted(path for path in (tmp_path / f"{workers}").rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / f"{workers}"): path.read_bytes() for path in files})
    assert contents[0] == contents[1] and any("after-one" in str(path) for path in contents[0])
    orders = orders_of(recipe, two)
    again = open_packing(tmp_path / "1", orders, two, RECORD)
    chunk = Chunk("two", orders[1].lanes[0], 5)
    assert [part.tolist() for part in again.pieces(chunk)] == [part.tolist() for part in index.pieces(chunk)]
    for other in ([], RECORD[:1]):  # had the loss gone otherwise, the second stage would have other documents
        assert not open_packing(tmp_path / "1", orders, two, other).has("two")
        assert open_packing(tmp_path / "1", orders, two, other).has("one")
    made: list[int] = []
    monkeypatch.setattr(packing_module, "make_lanes", lambda *_: made.append(1))
    packed(tmp_path / "1", recipe, two, RECORD, ONE)
    assert not made


@settings(max_examples=15)
@given(losses=st.lists(st.floats(0.1, 9.0), min_size=12, max_size=12), lengths=st.sampled_from([16, {"16": 1, "8": 2}]))
def test_no_mixture_asks_for_more_than_there_is_and_the_rest_is_enough_for_the_next_stage(
    tmp_path_factory: pytest.TempPathFactory, losses: list[float], lengths: Any
) -> None:
    """A source of which the stages may take next to all, and one of which there is more."""
    folder = tmp_path_factory.mktemp("run")
    shards = shards_in(folder, {"a": 5500, "b": 9000})
    recipe = recipe_with({**FOLLOWS, "chunk_length": lengths}, {})
    orders = orders_of(recipe, shards)
    index = packing(folder / "index", orders, shards, ONE)
    mixtures = Mixtures(orders, [], [], {name: float(len(shard.tokens)) for name, shard in shards.items()}, index.lanes)
    events: list[dict[str, Any]] = []
    for step in range(1, 85):
        loss = {"a": losses[step // 7 - 1], "b": 3.0}
        row = {"step": step, "stage": "one", "mix": {"a": 32, "b": 32}, "loss_by_source": loss}
        if event := mixtures.after_step(row, events):
            events.append(event)
    assert events
    went = mixtures.orders
    for lane in went["one"].lanes:
        assert went["one"].chunks_of(lane) <= len(index.lanes["one", lane])
    index.reach("two", went)
    for source in shards:
        assert (times_read(index, went["one"], source) + times_read(index, went["two"], source)).max() == 1


def test_a_mixture_that_has_nothing_to_choose_stays_as_planned(tmp_path: Path) -> None:
    """Sources of which the stage takes all, to less than a row of each chunk length."""
    shards = shards_in(tmp_path, {"a": 2700, "b": 2700})
    orders = orders_of(recipe_with({**FOLLOWS, "chunk_length": {"16": 1, "8": 1}}), shards)
    index = packing(tmp_path / "index", orders, shards, ONE)
    mixtures = Mixtures(orders, [], [], {"a": 2700.0, "b": 2700.0}, index.lanes)
    for step in range(1, 85):
        row = {"step": step, "stage": "one", "mix": {"a": 32, "b": 32}, "loss_by_source": {"a": 9.0, "b": 1.0}}
        assert mixtures.after_step(row, []) is None
    assert times_read(index, mixtures.orders["one"], "a").max() == 1


def test_too_much_over_all_stages_is_an_error_before_the_first(two: dict[str, Shard], tmp_path: Path) -> None:
    recipe = recipe_with(FOLLOWS, {}, {"tokens": 1920})
    with pytest.raises(UserError, match=r"would be seen about 1\.1 times: stage three comes to the end"):
        packing(tmp_path / "index", orders_of(recipe, two), two, ONE)
    assert not (tmp_path / "index").exists()
    assert packing(tmp_path / "index", orders_of(recipe, two), two, TWO).has("one")


def test_there_is_as_much_to_choose_from_as_a_source_could_be_given(two: dict[str, Shard], tmp_path: Path) -> None:
    recipe = recipe_with({**FOLLOWS, "tokens": 2 * 5376})
    orders = orders_of(recipe, two)
    seals = set()
    for limit in (ONE, FOUR):  # which may change while the run goes on, and a damaged index is made anew
        index = packing(tmp_path / f"{limit.epochs}", orders, two, limit)
        assert [told["bins"] for told in index.facts] == [672, 672], "all rows"
        assert index.epochs == pytest.approx({"a": 0.9, "b": 0.9}, abs=0.02), "as planned"
        seals.add(json.loads((tmp_path / f"{limit.epochs}" / "manifest.json").read_text())["sha256_of_lanes"])
    assert len(seals) == 1


def test_a_document_that_was_only_there_to_choose_from_is_whole_in_the_next_stages_longer_chunks(
    two: dict[str, Shard], tmp_path: Path
) -> None:
    longer = {"chunk_length": 64, "rows": 1}
    went, index = packed(tmp_path / "index", recipe_with(FOLLOWS, longer), two, RECORD, ONE)
    for source, shard in two.items():
        in_first = times_read(index, went[0], source)
        lane = index.lanes["two", went[1].lanes[["a", "b"].index(source)]]
        pieces = dict(zip(lane.piece_starts.tolist(), lane.piece_lengths.tolist(), strict=True))
        whole = cut = 0
        for document in range(len(shard)):
            start, end = shard.span(document)
            if end - start > 16 and start in pieces and not in_first[start:end].any():
                whole, cut = whole + (pieces[start] == end - start), cut + (pieces[start] != end - start)
        assert whole > 10 and cut < 0.1 * whole, "though the stage before has cut them at 16"


def test_a_limit_that_is_lowered_later_holds_for_the_stages_that_are_packed_later(
    two: dict[str, Shard], tmp_path: Path
) -> None:
    recipe = recipe_with({**FOLLOWS, "tokens": 2 * 5376}, {"tokens": 1280})
    orders = orders_of(recipe, two)
    packing(tmp_path / "index", orders, two, FOUR)
    with pytest.raises(
        UserError, match=r"source a has 6000 tokens, and would be seen about 1\.0 times: stage two comes"
    ):
        packing(tmp_path / "index", orders, two, Limit("train.max_epochs", 0.98))
    enough = packing(tmp_path / "index", orders, two, FOUR)
    enough.reach("two", gone(orders, []))
    again = packing(tmp_path / "index", orders, two, Limit("train.max_epochs", 1.05))
    again.reach("two", gone(orders, []))  # what was there to choose from was not read


def test_what_was_read_is_told_of_all_stages_though_an_index_was_lost(two: dict[str, Shard], tmp_path: Path) -> None:
    recipe = recipe_with(FOLLOWS, {})
    write_events(tmp_path, RECORD)
    pack(recipe, recipe.stage, two, tmp_path)[1].reach("two", gone(orders_of(recipe, two), RECORD))
    told = what_was_read(recipe, recipe.stage, two, tmp_path)
    shutil.rmtree(tmp_path / "packing")
    assert what_was_read(recipe, recipe.stage, two, tmp_path) == told
    assert {lane["stage"] for lane in told["packing"]} == {"one", "two"}


def test_pieces_that_follow_each_other_are_one_again(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "a.ds", [10, 20, 30])  # documents at 0, 10 and 30
    rows = [[0, 40, 5], [0, 10, 8], [1, 30, 10], [0, 45, 15], [0, 0, 10], [0, 20, 10], [0, 18, 2], [1, 40, 3]]
    made = joined(np.array(rows), shard)
    assert made.tolist() == [[0, 40, 20], [0, 10, 20], [1, 30, 13], [0, 0, 10]]
    assert joined(np.empty((0, 3), dtype=np.int64), shard).tolist() == []


def test_an_older_foxs_index_is_read_as_it_is_where_no_mixture_follows_the_loss(
    two: dict[str, Shard], tmp_path: Path
) -> None:
    plain, following = (orders_of(recipe_with(*stages), two) for stages in (({}, LONGER), (FOLLOWS, {})))
    for orders, name in ((plain, "plain"), (following, "following")):
        packing(tmp_path / name, orders, two, ONE)
        path = tmp_path / name / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["made_of"]["format"] = 2
        path.write_text(json.dumps(manifest))
    before = (tmp_path / "plain/manifest.json").read_bytes()
    assert packing(tmp_path / "plain", plain, two, ONE).has("two")
    assert (tmp_path / "plain/manifest.json").read_bytes() == before
    with pytest.raises(Failure, match=r"was packed by an older Fox.*Go on with that Fox, or train again"):
        packing(tmp_path / "following", following, two, ONE)


def test_what_is_left_is_hashed(two: dict[str, Shard], tmp_path: Path) -> None:
    orders = orders_of(recipe_with(FOLLOWS, {}), two)
    packing(tmp_path / "index", orders, two, ONE)
    path = tmp_path / "index/left/b.npy"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(Failure, match=r"left/b\.npy: is damaged"):
        packing(tmp_path / "index", orders, two, ONE).reach("two", gone(orders, RECORD))


def test_times_seen_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten tokens: 0 to 3 once, 4 and 5 twice, 6 and 7 once, 8 three times, 9 never."""
    starts, ends = np.array([0, 4, 8, 8, 8]), np.array([6, 8, 9, 9, 9])
    pieces = Pieces(starts, ends - starts)
    assert times_seen(pieces, 10) == [0.1, 0.6, 0.2, 0.1]
    for tokens in range(1, 11):
        monkeypatch.setattr("fox.train.readings._SLICE_TOKENS", tokens)
        assert times_seen(pieces, 10) == [0.1, 0.6, 0.2, 0.1]
