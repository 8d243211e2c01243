"""The order of the data: a pure function, each window once, in the recipe's mixture."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.errors import UserError
from fox.recipe import Recipe
from fox.train.curriculum import StageOrder, Window, curriculum, shuffled
from tests.unit.train.micro_training import recipe_of

TOKENS = {"a": 3000, "b": 1000, "c": 1111}


def orders_of(recipe: Recipe, tokens: dict[str, int] = TOKENS) -> list[StageOrder]:
    return curriculum(recipe, recipe.stage, tokens)


def windows_of(orders: list[StageOrder]) -> Iterator[Window]:
    """All windows, in the order in which they are trained on."""
    for order in orders:
        for step in range(order.stage.steps):
            for row in order.rows_of_step(step):
                yield from row


def one_stage(mix: dict[str, float], rows: int, rows_a_step: int = 10) -> dict[str, object]:
    stage = {"tokens": rows * 4, "chunk_length": 4, "rows": 1, "batch_tokens": rows_a_step * 4, "mix": mix}
    return {"only": stage}


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_shuffle_moves_each_index_to_a_place_of_its_own(size: int, key: int) -> None:
    assert sorted(shuffled(index, size, key) for index in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 10**12 + 7])
def test_a_shuffle_of_any_size_stays_inside_it_and_scatters(size: int) -> None:
    places = [shuffled(index, size, key=5) for index in range(2000)]
    assert len(set(places)) == 2000 and max(places) < size
    assert 0.4 < sum(places) / len(places) / size < 0.6


def test_shuffles_with_other_keys_are_others() -> None:
    orders = {tuple(shuffled(index, 50, key) for index in range(50)) for key in range(200)}
    assert len(orders) == 200


def test_a_step_is_the_same_in_whatever_order_it_is_asked_for(make_recipe: Callable[..., Recipe]) -> None:
    first, second = orders_of(make_recipe()), orders_of(make_recipe())
    asked = [(stage, step) for stage, order in enumerate(first) for step in range(order.stage.steps)]
    in_turn = {place: first[place[0]].rows_of_step(place[1]) for place in asked}
    random.Random(0).shuffle(asked)
    assert {place: second[place[0]].rows_of_step(place[1]) for place in asked} == in_turn
    assert {place: first[place[0]].rows_of_step(place[1]) for place in reversed(asked)} == in_turn


@pytest.mark.parametrize("tokens", [TOKENS, {"a": 97, "b": 33, "c": 50}, {"a": 10, "b": 6, "c": 7}])
def test_all_stages_together_take_each_stream_without_a_gap_or_a_repetition(
    make_recipe: Callable[..., Recipe], tokens: dict[str, int]
) -> None:
    orders = orders_of(make_recipe(), tokens)
    for source in tokens:
        taken = sorted((w.start, w.length) for w in windows_of(orders) if w.source == source)
        assert taken[0][0] == 0
        assert all(start + length == after for (start, length), (after, _) in pairwise(taken))
        assert sum(length for _, length in taken) == sum(
            order.tokens_of(source) for order in orders if source in order.shares
        )


@pytest.mark.parametrize("tokens", [TOKENS, {"a": 97, "b": 33, "c": 50}, {"a": 10, "b": 6, "c": 7}])
def test_no_epoch_begins_before_the_last_one_has_ended(
    make_recipe: Callable[..., Recipe], tokens: dict[str, int]
) -> None:
    for source, size in tokens.items():
        epochs = [w.start // size for w in windows_of(orders_of(make_recipe(), tokens)) if w.source == source]
        assert epochs == sorted(epochs)


def test_inside_an_epoch_windows_are_shuffled(make_recipe: Callable[..., Recipe]) -> None:
    starts = [w.start for w in windows_of(orders_of(make_recipe())[:1]) if w.source == "a"]
    assert starts != sorted(starts)
    assert len([1 for one, two in pairwise(starts) if two == one + 16]) < len(starts) / 4


@given(
    weights=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=4),
    rows=st.sampled_from([200, 990, 1000, 2000, 2510]),
)
def test_each_step_has_the_mixture_and_the_stage_has_it_exactly(weights: list[float], rows: int) -> None:
    names = [f"s{n}" for n in range(len(weights))]
    mix = dict(zip(names, weights, strict=True))
    recipe = recipe_of(source={n: {"path": n} for n in names}, stage=one_stage(mix, rows), tune=None)
    (order,) = orders_of(recipe, dict.fromkeys(names, 100_000))
    total: Counter[str] = Counter()
    for step in range(order.stage.steps):
        counts = Counter(row[0].source for row in order.rows_of_step(step))
        total += counts
        for name, share in order.shares.items():
            assert abs(counts[name] - share * order.rows_a_step) <= len(names) + 0.01
    for name, share in order.shares.items():
        whole_periods = rows % min(rows, 1000) == 0
        assert abs(total[name] - share * rows) <= -(-rows // 1000) + (0 if whole_periods else len(names))
        assert order.tokens_of(name) == total[name] * 4


def test_a_kind_is_divided_by_the_tokens_of_its_sources(make_recipe: Callable[..., Recipe]) -> None:
    short, mixed, long = orders_of(make_recipe())
    assert short.shares == pytest.approx({"a": 0.75, "b": 0.25})
    assert mixed.shares == pytest.approx({"a": 0.75 * 0.75, "b": 0.75 * 0.25, "c": 0.25})
    assert long.shares == pytest.approx({"a": 0.5, "c": 0.5})


def test_a_few_documents_beside_many_of_their_kind_have_a_row_in_a_thousand(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(stage=one_stage({"text": 3.0, "c": 1.0}, 4000))
    (order,) = curriculum(recipe, recipe.stage, {"a": 10_000_000, "b": 50, "c": 5_000})
    assert order.shares == pytest.approx({"a": 0.749, "b": 0.001, "c": 0.25})
    rows = [row[0].source for step in range(order.stage.steps) for row in order.rows_of_step(step)]
    assert rows.count("b") == pytest.approx(len(rows) / 1000, abs=1)
    assert order.tokens_of("b") == rows.count("b") * order.stage.row_length > 0


def test_a_kind_leaves_out_the_sources_that_the_mix_names(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(stage=one_stage({"text": 1.0, "b": 1.0, "c": 2.0}, 400))
    assert orders_of(recipe)[0].shares == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})


def test_chunks_have_their_sources_length_fill_rows_and_grow_with_the_stages(
    make_recipe: Callable[..., Recipe],
) -> None:
    lengths = []
    for order in orders_of(make_recipe()):
        for step in range(order.stage.steps):
            rows = order.rows_of_step(step)
            assert len(rows) == order.rows_a_step
            for row in rows:
                assert len({w.source for w in row}) == 1
                assert sum(w.length for w in row) == order.stage.row_length
                assert {w.length for w in row} == {order.chunk_lengths[row[0].source]}
        lengths.append(dict(order.chunk_lengths))
    assert lengths == [{"a": 16, "b": 16}, {"a": 32, "b": 32, "c": 16}, {"a": 64, "c": 64}]


@pytest.mark.parametrize(("stage", "key"), [("stage", "stage.only.mix"), ("tune", "tune.mix")])
def test_a_share_too_small_for_one_row_is_refused_by_name(
    make_recipe: Callable[..., Recipe], stage: str, key: str
) -> None:
    recipe = make_recipe(stage=one_stage({"a": 1.0, "b": 1.0, "c": 1e-6}, 2000))
    stages = recipe.stage
    if stage == "tune":
        assert recipe.tune
        stages = {"tune": recipe.tune.model_copy(update={"mix": {"c": 1.0, "a": 1e-6}})}
    with pytest.raises(UserError) as error:
        curriculum(recipe, stages, TOKENS)
    problem = error.value.problems[0]
    assert problem.key == key and problem.mend
    assert "too small" in problem.problem


def test_the_order_changes_with_the_seed_and_the_mixture_does_not(make_recipe: Callable[..., Recipe]) -> None:
    one, other = (orders_of(make_recipe(seed=seed)) for seed in (1, 2))
    assert [w.start for w in windows_of(one)] != [w.start for w in windows_of(other)]
    assert [order.tokens_of("a") for order in one] == [order.tokens_of("a") for order in other]
