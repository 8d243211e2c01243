"""Online Data Mixing: the paper's rule by hand, what always holds of the shares, and a source that may not be given more."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.train.curriculum import StageOrder, curriculum
from fox.train.mixing import Mixing, Mixtures, resumed, rows_needed, within
from tests.unit.train.micro_training import recipe_of

EVEN = {"a": 0.5, "b": 0.5}


def test_the_first_change_is_the_papers_by_hand() -> None:
    """Algorithm 1 of arXiv 2312.02406 with K = 2, its second turn: eps_1 = 1/2, eps_2 = sqrt(ln 2 / 4) = 0.41628."""
    mixing = Mixing(EVEN).after({"a": 2.0, "b": 4.0}, EVEN)
    assert mixing.rewards == pytest.approx({"a": 0.1 * 2 / 0.5, "b": 0.1 * 4 / 0.5})
    weight_a, weight_b = math.exp(0.5 * 0.4), math.exp(0.5 * 0.8)
    b = (1 - 2 * 0.416277) * weight_b / (weight_a + weight_b) + 0.416277
    assert b == pytest.approx(0.508344, abs=1e-6)
    assert mixing.shares == pytest.approx({"a": 1 - b, "b": b}, abs=1e-6)


def test_the_second_change_is_the_papers_by_hand() -> None:
    """Its third turn: eps_3 = sqrt(ln 2 / 6) = 0.33989; only b was drawn, so a keeps its reward; what b had is 0.508344."""
    had = {"a": 0.491656, "b": 0.508344}
    mixing = Mixing(EVEN, 1, {"a": 0.4, "b": 0.8}).after({"b": 3.0}, had)
    assert mixing.rewards == pytest.approx({"a": 0.4, "b": 0.9 * 0.8 + 0.1 * 3.0 / 0.508344})
    weight_a, weight_b = math.exp(0.416277 * 0.4), math.exp(0.416277 * 1.310152)
    b = (1 - 2 * 0.339889) * weight_b / (weight_a + weight_b) + 0.339889
    assert mixing.shares["b"] == pytest.approx(b, abs=1e-5) and b > 0.52


def test_an_uneven_recipe_is_where_it_begins_and_what_it_explores() -> None:
    first = {"a": 0.9, "b": 0.1}
    assert Mixing(first).shares == first
    same = Mixing(first).after({"a": 3.0, "b": 3.0}, first)
    assert same.shares == pytest.approx(first)  # who is no harder gets no more, however small its share


@given(
    first=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6),
    losses=st.lists(st.lists(st.none() | st.floats(0.0, 20.0), min_size=6, max_size=6), max_size=30),
)
def test_shares_are_a_mixture_with_a_floor_and_the_same_every_time(
    first: list[float], losses: list[list[float | None]]
) -> None:
    start = {f"{at}": share / sum(first) for at, share in enumerate(first)}
    twice = []
    for _ in range(2):
        mixing = Mixing(start)
        for turn in losses:
            seen = {name: loss for name, loss in zip(start, turn, strict=False) if loss is not None}
            mixing = mixing.after(seen, mixing.shares)
        twice.append(mixing.shares)
        assert math.fsum(mixing.shares.values()) == pytest.approx(1)
        count = len(start)
        least = count * min(1 / count, math.sqrt(math.log(count) / (count * (len(losses) + 1))))
        assert all(mixing.shares[name] >= (1 - 1e-9) * least * share for name, share in start.items())
    assert twice[0] == twice[1]


@given(
    shares=st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6),
    most=st.lists(st.floats(0.0, 1.5), min_size=6, max_size=6),
)
def test_no_share_is_above_what_it_may_be(shares: list[float], most: list[float]) -> None:
    wanted = {f"{at}": share / sum(shares) for at, share in enumerate(shares)}
    limits = dict(zip(wanted, most, strict=False))
    given_ = within(wanted, limits)
    assert math.fsum(given_.values()) == pytest.approx(1)
    if sum(limits.values()) > 1:
        assert all(given_[name] <= limits[name] + 1e-9 for name in wanted)
        assert all(given_[name] >= min(wanted[name], limits[name]) - 1e-9 for name in wanted)


def two_sources(**stage: Any) -> StageOrder:
    """A hundred steps of eight rows."""
    table = {"tokens": 12_800, "chunk_length": 16, "rows": 8, "batch_tokens": 128, "mix": {"a": 1.0, "b": 1.0}}
    recipe = recipe_of(
        source={"a": {"path": "a"}, "b": {"path": "b"}},
        stage={"only": {**table, "mix_follows": "odm", "mix_every_steps": 10, **stage}},
        tune=None,
    )
    (order,) = curriculum(recipe, recipe.stage, {"a": 5000, "b": 5000})
    return order


def row(step: int, loss_a: float, loss_b: float, **other: Any) -> dict[str, Any]:
    losses = {"a": loss_a, "b": loss_b}
    return {"step": step, "stage": "only", "mix": {"a": 64, "b": 64}, "loss_by_source": losses, **other}


NO_LIMIT = {"a": 1e15, "b": 1e15}


def events_of(order: StageOrder, rows: list[dict[str, Any]], most: dict[str, float]) -> tuple[Mixtures, list[Any]]:
    mixtures, events = Mixtures([order], [], [], most, {}), []
    for each in rows:
        if event := mixtures.after_step(each, events):
            events.append(event)
    return mixtures, events


def test_a_change_comes_after_so_many_steps_goes_by_the_mean_and_is_in_the_order() -> None:
    order = two_sources()
    rows = [row(step, 2.0, 3.0 if step % 2 else 5.0) for step in range(1, 101)]
    mixtures, events = events_of(order, rows, NO_LIMIT)
    assert [event["step"] for event in events] == [
        11,
        21,
        31,
        41,
        51,
        61,
        71,
        81,
        91,
    ]  # none where there is no step left
    assert events[0]["rewards"] == pytest.approx({"a": 0.4, "b": 0.8})
    for event in events:
        assert mixtures.orders["only"].mix_at(event["step"] - 1) == pytest.approx(event["mix"])
    assert mixtures.orders["only"].mix_at(9) == order.mix_at(0)
    assert resumed(EVEN, events, "only").shares == events[-1]["mix"] and rows_needed([order]) == 10


def test_what_is_skipped_or_passed_over_teaches_nothing() -> None:
    rows = [row(step, 2.0, 4.0) for step in range(1, 11)]
    spoilt = [dict(each) for each in rows]
    spoilt[3] |= {"loss_by_source": {"a": 99.0}, "skipped": "the loss is no longer finite"}
    spoilt[6] = {"step": 7, "stage": "only", "mix": {}, "passed_over": "a drift"}
    assert events_of(two_sources(), spoilt, NO_LIMIT)[1] == events_of(two_sources(), rows, NO_LIMIT)[1]
    nothing = [{"step": step, "stage": "only", "mix": {}, "passed_over": "a drift"} for step in range(1, 11)]
    assert events_of(two_sources(), nothing, NO_LIMIT)[1][0]["rewards"] == {"a": 0.0, "b": 0.0}


@pytest.mark.parametrize("stop", range(1, 41))
def test_it_goes_on_from_any_step_and_a_change_on_record_stands(stop: int) -> None:
    """Also where the record is ahead of the steps that are done, as after a kill or a roll-back."""
    order = two_sources()
    rows = [row(step, 2.0 + step % 3, 4.0 / step) for step in range(1, 101)]
    whole, events = events_of(order, rows, NO_LIMIT)
    for known in (0, 9, 15):
        on_record = [event for event in events if event["step"] <= stop + 1 + known]
        again = Mixtures([order], on_record, rows[max(0, stop - rows_needed([order])) : stop], NO_LIMIT, {})
        for each in rows[stop:]:
            if event := again.after_step(each, on_record):
                on_record.append(event)
        assert on_record == events and again.orders == whole.orders


def test_a_source_is_held_at_what_may_be_seen_of_it_and_that_is_told() -> None:
    order = two_sources()
    rows = [row(step, 1.0, 9.0) for step in range(1, 101)]
    free, events = events_of(order, rows, NO_LIMIT)
    assert free.orders["only"].tokens_given(100)["b"] > 7500 and not any("held" in event for event in events)
    held, events = events_of(order, rows, {"a": 1e15, "b": 7000.0})
    assert held.orders["only"].tokens_given(100) == {"a": 12_800 - 6992, "b": 6992}
    assert [event for event in events if event.get("held") == ["b"]]


def test_a_source_is_held_for_what_later_stages_take_of_it() -> None:
    recipe = recipe_of(
        source={"a": {"path": "a"}, "b": {"path": "b"}},
        stage={
            "one": two_sources().stage.model_dump(),
            "two": two_sources(mix_follows=None, mix={"b": 1.0}).stage.model_dump(),
        },
        tune=None,
    )
    orders = curriculum(recipe, recipe.stage, {"a": 5000, "b": 5000})
    mixtures = Mixtures(orders, [], [], {"a": 1e15, "b": 12_800 + 6_600}, {})
    events: list[Any] = []
    for step in range(1, 101):
        if event := mixtures.after_step({**row(step, 1.0, 9.0), "stage": "one"}, events):
            events.append(event)
    assert 6_400 < mixtures.orders["one"].tokens_given(100)["b"] <= 6_600
