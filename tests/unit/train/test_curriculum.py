"""The order of the rows: a pure function, in the recipe's mixture to the row, whoever asks and however the mixture changes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.errors import UserError
from fox.recipe import Recipe
from fox.train.curriculum import Chunk, Lane, StageOrder, curriculum, mixture_warnings, told
from tests.unit.train.micro_training import recipe_of

TOKENS = {"a": 3000, "b": 1000, "c": 1111}


def orders_of(recipe: Recipe, tokens: dict[str, int] = TOKENS) -> list[StageOrder]:
    return curriculum(recipe, recipe.stage, tokens)


def one_stage(mix: dict[str, float], rows: int, rows_a_step: int = 10, **other: Any) -> dict[str, Any]:
    stage = {"tokens": rows * 4, "chunk_length": 4, "rows": 1, "batch_tokens": rows_a_step * 4, "mix": mix}
    return {"only": {**stage, **other}}


def order_of(mix: dict[str, float], rows: int, rows_a_step: int = 10, **other: Any) -> StageOrder:
    """The one stage of a recipe that has just the sources of `mix`."""
    sources = {name: {"path": name} for name in mix}
    (order,) = orders_of(
        recipe_of(source=sources, stage=one_stage(mix, rows, rows_a_step, **other), tune=None),
        dict.fromkeys(mix, 100_000),
    )
    return order


def sources_by_step(order: StageOrder) -> list[Counter[str]]:
    return [Counter(row[0].lane.source for row in order.rows_of_step(step)) for step in range(order.steps)]


def chunks_of(order: StageOrder) -> list[Chunk]:
    return [chunk for step in range(order.steps) for row in order.rows_of_step(step) for chunk in row]


def test_a_step_is_the_same_in_whatever_order_it_is_asked_for(make_recipe: Callable[..., Recipe]) -> None:
    first, second = orders_of(make_recipe()), orders_of(make_recipe())
    asked = [(stage, step) for stage, order in enumerate(first) for step in range(order.steps)]
    in_turn = {place: first[place[0]].rows_of_step(place[1]) for place in asked}
    random.Random(0).shuffle(asked)
    assert {place: second[place[0]].rows_of_step(place[1]) for place in asked} == in_turn
    assert {place: first[place[0]].rows_of_step(place[1]) for place in reversed(asked)} == in_turn


@pytest.mark.parametrize("rows", [24, 990, 1000, 2510])
def test_a_stage_takes_each_chunk_of_each_lane_once_in_turn(rows: int) -> None:
    order = order_of({"a": 0.6, "b": 0.3, "c": 0.1}, rows, rows_a_step=1, chunk_length={"a": 8, "b": 4, "c": 2})
    taken = chunks_of(order)
    for lane in order.lanes:
        numbers = [chunk.number for chunk in taken if chunk.lane == lane]
        assert numbers == list(range(order.chunks_of(lane)))
    assert {chunk.stage for chunk in taken} == {"only"}


@given(
    weights=st.lists(st.floats(0.02, 1.0), min_size=1, max_size=5),
    rows=st.sampled_from([200, 990, 1000, 2000, 2510, 12_340]),
)
def test_each_step_has_the_mixture_and_the_stage_has_it_to_the_row(weights: list[float], rows: int) -> None:
    mix = {f"s{n}": weight for n, weight in enumerate(weights)}
    order = order_of(mix, rows)
    total: Counter[str] = Counter()
    for counts in sources_by_step(order):
        total += counts
        for name, weight in mix.items():
            assert abs(counts[name] - 10 * weight / sum(weights)) <= len(weights) + 0.01
    for name, weight in mix.items():
        share = weight / sum(weights)
        assert abs(total[name] - share * rows) <= 1
        assert abs(total[name] / rows - share) <= 0.005
        assert order.rows_of(Lane(name, 4)) == total[name]


def test_a_stage_of_many_periods_has_small_shares_to_the_row() -> None:
    order = order_of({"a": 0.9, "b": 0.0996, "c": 0.0004}, 30_000, rows_a_step=100)
    assert [order.rows_of(lane) for lane in order.lanes] == [27_000, 2988, 12]
    steps = [step for step, counts in enumerate(sources_by_step(order)) if counts["c"]]
    assert len(steps) == 12 and max(steps) - min(steps) > 200


@pytest.mark.parametrize(
    "chunk_length",
    [{"2": 0.3, "4": 0.2, "8": 0.5}, {"a": {"2": 0.3, "4": 0.2, "8": 0.5}, "b": 8}, {"a": {"2": 3, "4": 2, "8": 5}, "b": {"8": 9}}],
)  # fmt: skip
def test_a_distribution_of_lengths_holds_in_tokens(chunk_length: dict[str, Any]) -> None:
    order = order_of({"a": 0.7, "b": 0.3}, 4000, rows_a_step=20, chunk_length=chunk_length)
    tokens: Counter[Lane] = Counter()
    for chunk in chunks_of(order):
        tokens[chunk.lane] += chunk.lane.length
    total = sum(tokens.values())
    assert total == order.stage.total_tokens
    for length, share in ((2, 0.3), (4, 0.2), (8, 0.5)):
        assert tokens[Lane("a", length)] / total == pytest.approx(0.7 * share, abs=0.002)
    assert sum(count for lane, count in tokens.items() if lane.source == "b") / total == pytest.approx(0.3, abs=0.002)
    assert (Lane("b", 2) in tokens) == ("2" in chunk_length)


def test_a_ramp_grows_evenly_in_tokens_and_keeps_the_mixture() -> None:
    ramp = {"start": 16, "tokens": 4000}
    order = order_of({"a": 0.9, "b": 0.1}, 3000, rows_a_step=40, batch_ramp=ramp)
    sizes = [order.batch_tokens_of(step) for step in range(order.steps)]
    assert sizes[0] == 16 and sizes[-1] == 160 and sizes == sorted(sizes)
    assert all(size % 16 == 0 for size in sizes)
    for step, size in enumerate(sizes):
        seen = order.tokens_before(step)
        assert seen == sum(sizes[:step])
        assert abs(size - min(160, 16 + 144 * seen / 4000)) <= 8
        assert sum(chunk.lane.length for row in order.rows_of_step(step) for chunk in row) == size
        assert order.stage.steps_within(seen + 1) == step + 1 and order.stage.steps_within(seen) == step
    assert order.stage.total_tokens == sum(sizes) == pytest.approx(12_000, abs=80)
    assert order.rows_of(Lane("b", 4)) / order.num_rows == pytest.approx(0.1, abs=0.0005)
    assert len(chunks_of(order)) == len(set(chunks_of(order))) == order.num_rows


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_slices_of_a_step_are_the_step(make_recipe: Callable[..., Recipe], parts: int) -> None:
    together = orders_of(make_recipe())
    ranks = [orders_of(make_recipe()) for _ in range(parts)]
    for stage, order in enumerate(together):
        for step in range(order.steps):
            sliced = []
            for rank, own in enumerate(ranks):
                rows = own[stage].rows_of_step(step)
                sliced += rows[rank * len(rows) // parts : (rank + 1) * len(rows) // parts]
            assert sliced == order.rows_of_step(step)


def mix_event(step: int, mix: dict[str, float], stage: str = "only") -> dict[str, Any]:
    return {"event": "mix", "step": step, "stage": stage, "mix": mix}


def test_a_changed_mixture_changes_the_rows_from_its_step_on_and_none_before() -> None:
    order = order_of({"a": 0.5, "b": 0.5}, 2000, chunk_length={"a": {"2": 1, "4": 1}, "b": 4})
    events = [
        mix_event(41, {"a": 0.8, "b": 0.2}),
        {"event": "skipped", "step": 50},
        mix_event(101, {"a": 0.1, "b": 0.9}),
    ]
    changed = order.after(events)
    assert all(changed.rows_of_step(step) == order.rows_of_step(step) for step in range(40))
    for first, end, share in ((0, 40, 0.5), (40, 100, 0.8), (100, 200, 0.1)):
        rows = [row for step in range(first, end) for row in changed.rows_of_step(step)]
        of_a = [row[0].lane.length for row in rows if row[0].lane.source == "a"]
        assert len(of_a) / len(rows) == pytest.approx(share, abs=0.005)
        assert of_a.count(2) / len(of_a) == pytest.approx(0.5, abs=0.02)
        assert changed.mix_at(first) == pytest.approx({"a": share, "b": 1 - share})
    for lane in changed.lanes:
        numbers = [chunk.number for chunk in chunks_of(changed) if chunk.lane == lane]
        assert numbers == list(range(len(numbers)))  # each lane's counter goes on


@given(data=st.data())
def test_with_changed_mixtures_the_order_is_pure(data: st.DataObject) -> None:
    order = order_of({"a": 0.5, "b": 0.3, "c": 0.2}, 400)
    steps = sorted(data.draw(st.lists(st.integers(1, 40), max_size=5)))
    events = []
    for step in steps:
        weights = data.draw(st.lists(st.floats(0.01, 1), min_size=3, max_size=3))
        events.append(
            mix_event(step, {name: weight / sum(weights) for name, weight in zip("abc", weights, strict=True)})
        )
    at_once = order.after(events)
    one_by_one = order
    seen = []
    for step in range(40):  # as a run does that changes its mixture as it goes, and forgets nothing
        one_by_one = one_by_one.after([event for event in events if event["step"] == step + 1])
        seen.append(one_by_one.rows_of_step(step))
    assert seen == [at_once.rows_of_step(step) for step in range(40)]
    for lane in order.lanes:
        numbers = [chunk.number for rows in seen for row in rows for chunk in row if chunk.lane == lane]
        assert numbers == list(range(at_once.rows_of(lane)))


def test_a_change_is_counted_from_the_runs_first_step_and_is_of_one_stage(make_recipe: Callable[..., Recipe]) -> None:
    short, mixed, long = orders_of(make_recipe())
    assert (short.first_step, mixed.first_step, long.first_step) == (0, 10, 16)
    events = [mix_event(18, {"a": 0.0, "c": 1.0}, "long")]
    assert short.after(events) is short and mixed.after(events) is mixed
    changed = long.after(events)
    assert changed.rows_of_step(0) == long.rows_of_step(0)
    assert {row[0].lane.source for step in (1, 2, 3) for row in changed.rows_of_step(step)} == {"c"}


def test_a_kind_is_divided_by_the_tokens_of_its_sources(make_recipe: Callable[..., Recipe]) -> None:
    short, mixed, long = (order.mix_at(0) for order in orders_of(make_recipe()))
    assert short == pytest.approx({"a": 0.75, "b": 0.25})
    assert mixed == pytest.approx({"a": 0.75 * 0.75, "b": 0.75 * 0.25, "c": 0.25})
    assert long == pytest.approx({"a": 0.5, "c": 0.5})


def test_a_few_documents_beside_many_of_their_kind_have_a_row(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(stage=one_stage({"text": 3.0, "c": 1.0}, 4000))
    (order,) = orders_of(recipe, {"a": 10_000_000, "b": 50, "c": 5_000})
    assert [order.rows_of(Lane(source, 4)) for source in "abc"] == [2999, 1, 1000]


def test_a_kind_leaves_out_the_sources_that_the_mix_names(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(stage=one_stage({"text": 1.0, "b": 1.0, "c": 2.0}, 400))
    assert orders_of(recipe)[0].mix_at(0) == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


def test_rows_are_chunks_of_one_lane_and_are_told_by_source(make_recipe: Callable[..., Recipe]) -> None:
    lengths = []
    for order in orders_of(make_recipe()):
        for step in range(order.steps):
            rows = order.rows_of_step(step)
            for row in rows:
                assert len({chunk.lane for chunk in row}) == 1
                assert sum(chunk.lane.length for chunk in row) == order.stage.row_length
            assert sum(told(rows, order.stage.row_length)["mix"].values()) == order.batch_tokens_of(step)
        lengths.append({lane.source: lane.length for lane in order.lanes})
    assert lengths == [{"a": 16, "b": 16}, {"a": 32, "b": 32, "c": 16}, {"a": 64, "c": 64}]
    rows = [[Chunk("x", Lane("a", 8), 0)], [Chunk("x", Lane("a", 4), n) for n in (0, 1)], [Chunk("x", Lane("b", 8), 0)]]
    assert told(rows, 8) == {"mix": {"a": 16, "b": 8}, "chunk_length": {"a": 6, "b": 8}}


@pytest.mark.parametrize(("stage", "key"), [("stage", "stage.only.mix"), ("tune", "tune.mix"), ("length", "stage.only.chunk_length")])  # fmt: skip
def test_a_share_too_small_for_one_row_is_refused_by_name(
    make_recipe: Callable[..., Recipe], stage: str, key: str
) -> None:
    recipe = make_recipe(stage=one_stage({"a": 1.0, "b": 1.0, "c": 1e-6}, 2000))
    stages: Any = recipe.stage
    if stage == "tune":
        assert recipe.tune
        stages = {"tune": recipe.tune.model_copy(update={"mix": {"c": 1.0, "a": 1e-6}})}
    if stage == "length":
        stages = make_recipe(stage=one_stage({"a": 1.0}, 2000, chunk_length={"4": 1.0, "2": 1e-6})).stage
    with pytest.raises(UserError) as error:
        curriculum(recipe, stages, TOKENS)
    problem = error.value.problems[0]
    assert problem.key == key and problem.mend
    assert "too small" in problem.problem


def test_the_order_changes_with_the_seed_and_the_mixture_does_not(make_recipe: Callable[..., Recipe]) -> None:
    one, other = (orders_of(make_recipe(seed=seed)) for seed in (1, 2))
    assert [chunks_of(order) for order in one] != [chunks_of(order) for order in other]
    assert [order.rows_of(lane) for order in one for lane in order.lanes] == [
        order.rows_of(lane) for order in other for lane in order.lanes
    ]


@pytest.mark.parametrize(
    ("mix", "rows", "expected"),
    [
        ({"a": 0.55, "b": 0.45}, 8, ["a gets 50.0 % of the tokens, and not 55.0 %", "b gets 50.0 %"]),
        ({"a": 0.55, "b": 0.45}, 20, []),
        ({"a": 2.0, "b": 1.0}, 60, []),
        ({"a": 2.0, "b": 1.0}, 50, ["a gets 66.0 % of the tokens, and not 66.7 %", "b gets 34.0 %"]),
        ({"a": 2.0, "b": 1.0}, 100, []),
    ],
)
def test_a_mixture_that_whole_rows_can_not_give_is_told(mix: dict[str, float], rows: int, expected: list[str]) -> None:
    recipe = recipe_of(
        source={name: {"path": name} for name in mix}, stage=one_stage(mix, rows, rows_a_step=1), tune=None
    )
    warnings = mixture_warnings(recipe, curriculum(recipe, recipe.stage, dict.fromkeys(mix, 100_000)))
    assert len(warnings) == len(expected)
    assert all(f"stage.only.mix: {part}" in warning for part, warning in zip(expected, warnings, strict=True))


def test_a_kind_is_told_as_the_recipe_names_it() -> None:
    recipe = recipe_of(stage=one_stage({"text": 0.5, "c": 0.5}, 7, rows_a_step=1), tune=None)
    warnings = mixture_warnings(recipe, orders_of(recipe))
    assert [warning.split(" of the tokens")[0] for warning in warnings] == [
        "stage.only.mix: text gets 57.1 %",
        "stage.only.mix: c gets 42.9 %",
    ]


def test_a_mixture_that_follows_the_loss_is_not_held_to_what_it_begins_with() -> None:
    mix = {"a": 0.55, "b": 0.45}
    stage = one_stage(mix, 8, rows_a_step=1, mix_follows="odm")
    recipe = recipe_of(source={name: {"path": name} for name in mix}, stage=stage, tune=None)
    assert mixture_warnings(recipe, curriculum(recipe, recipe.stage, dict.fromkeys(mix, 100_000))) == []
