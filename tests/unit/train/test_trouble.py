"""Trouble in the loss: what the watch sees, what it lets pass, and where a roll-back goes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from fox.recipe.schema import Train
from fox.train.trouble import (
    FEWEST,
    Diverged,
    Verdict,
    Watch,
    earliest_drift,
    newest_rows,
    passed_over,
    roll_back_event,
    skip_event,
    undone_by,
)

RULES = Train()
VOCAB_SIZE = 49_152
Losses = Iterable[float]


def row_of(step: int, loss: float, norm: float, stage: str = "one") -> dict[str, Any]:
    return {"step": step, "tokens": 100 * step, "stage": stage, "loss": loss, "gradient_norm": norm}


def judged(losses: Losses, norms: Losses, rules: Train = RULES, warmup_tokens: int = 0) -> list[Verdict]:
    """The verdicts on a series, up to the first roll-back."""
    watch = Watch(rules, warmup_tokens, VOCAB_SIZE)
    verdicts = []
    for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1):
        verdicts.append(watch.judge(row_of(step, loss, norm)))
        if verdicts[-1].action == "roll_back":
            break
    return verdicts


def ordinary(steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A loss that falls as training losses do, noisy as a step's is; norms that are log-normal."""
    random = np.random.default_rng(seed)
    losses = 2 + 5 * (1 + np.arange(steps)) ** -0.4 + 0.05 * random.normal(size=steps)
    return losses, 0.5 * np.exp(0.3 * random.normal(size=steps))


def rare_kind(random: np.random.Generator, steps: int) -> np.ndarray:
    """One step in thirty is of another kind of text, with a loss far from that of the others."""
    return 2.5 + 0.03 * random.normal(size=steps) + 0.3 * (random.random(steps) < 1 / 30)


def wandering(random: np.random.Generator, steps: int) -> np.ndarray:
    """Losses of which each is like the one before it."""
    series = [0.0]
    for shock in random.normal(size=steps - 1):
        series.append(0.9 * series[-1] + math.sqrt(1 - 0.9**2) * shock)
    return 2.5 + 0.05 * np.array(series)


SERIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "quiet": lambda random, steps: 2.5 + 0.001 * random.normal(size=steps),
    "noisy": lambda random, steps: 2.5 + 0.3 * random.normal(size=steps),
    "falling": lambda random, steps: 2 + 6 * np.exp(-np.arange(steps) / 300) + 0.05 * random.normal(size=steps),
    "two kinds": lambda random, steps: 2.5 + 0.03 * random.normal(size=steps) + 0.5 * (random.random(steps) < 0.2),
    "wandering": wandering,
}


@pytest.mark.parametrize("name", SERIES)
def test_ordinary_losses_pass(name: str) -> None:
    steps = 3000
    random = np.random.default_rng(1)
    norms = 0.5 * np.exp(0.4 * random.normal(size=steps))
    assert [v.reason for v in judged(SERIES[name](random, steps), norms) if v.action != "go"] == []


def test_a_rare_kind_of_text_is_skipped_until_the_band_has_widened() -> None:
    random = np.random.default_rng(2)
    verdicts = judged(rare_kind(random, 2000), 0.5 * np.exp(0.3 * random.normal(size=2000)))
    skipped = [step for step, verdict in enumerate(verdicts) if verdict.action == "skip"]
    assert len(verdicts) == 2000 and 0 < len(skipped) < 15
    assert len([step for step in skipped if step > 500]) < 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["loss", "gradient"])
def test_what_is_not_finite_is_skipped_from_the_first_step_on(value: float, which: str) -> None:
    watch = Watch(RULES, warmup_tokens=10_000, vocab_size=VOCAB_SIZE)
    verdict = watch.judge(row_of(1, value if which == "loss" else 3.0, value if which == "gradient" else 1.0))
    assert verdict == Verdict("skip", f"the {which} is no longer finite", 1)
    assert watch.judge(row_of(2, 3.0, 1.0)).action == "go"


@pytest.mark.parametrize("seed", range(5))
def test_spikes_of_loss_and_of_norm_are_skipped_and_nothing_else_is(seed: int) -> None:
    losses, norms = ordinary(600, seed)
    losses[[300, 420, 421]] += [0.6, 30.0, 0.6]
    norms[500] = 20
    found = {step: verdict for step, verdict in enumerate(judged(losses, norms)) if verdict.action != "go"}
    assert list(found) == [300, 420, 421, 500]
    assert {verdict.action for verdict in found.values()} == {"skip"}
    assert found[300].reason.startswith("the loss") and found[500].reason.startswith("the gradient norm 20 is")
    assert "deviations above the usual 2." in found[300].reason and found[421].since == 421


def test_a_falling_loss_is_no_trouble() -> None:
    losses, norms = ordinary(400)
    losses[300:] -= 1.0
    assert all(verdict.action == "go" for verdict in judged(losses, norms))


def test_losses_that_stay_away_roll_back_after_as_many_as_the_recipe_says() -> None:
    losses, norms = ordinary(400)
    losses[300:] = 9.0
    verdicts = judged(losses, norms, Train(skips_in_a_row=5))
    assert [verdict.action for verdict in verdicts[300:]] == ["skip"] * 4 + ["roll_back"]
    assert verdicts[-1].since == 301 and "5 steps in a row were skipped" in verdicts[-1].reason


@pytest.mark.parametrize("rise_a_step", [0.001, 0.004, 0.02])
def test_a_slow_divergence_rolls_back_though_no_step_is_a_spike(rise_a_step: float) -> None:
    losses, norms = ordinary(1000)
    losses[600:] += rise_a_step * np.arange(400)
    verdicts = judged(losses, norms)
    assert {verdict.action for verdict in verdicts[:-1]} == {"go"}
    assert verdicts[-1].action == "roll_back" and "the median loss of 32 steps" in verdicts[-1].reason
    assert 590 < verdicts[-1].since == len(verdicts) - 31 < 900


def test_warm_up_and_the_first_steps_of_a_stage_have_no_band() -> None:
    losses = [3.0] * 60 + [9.0] * 20
    assert all(verdict.action == "go" for verdict in judged(losses, [1.0] * 80, warmup_tokens=8000))
    assert judged(losses, [1.0] * 80, warmup_tokens=2000)[60].action == "skip"
    watch = Watch(RULES, 0, VOCAB_SIZE)
    for step in range(1, 200):
        watch.judge(row_of(step, 3.0, 1.0))
    after = [watch.judge(row_of(step, 9.0, 1.0, stage="two")).action for step in range(200, 200 + FEWEST)]
    assert set(after) == {"go"}
    assert watch.judge(row_of(300, 19.0, 1.0, stage="two")).action == "skip"


def border(seed: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Rows of a stage of 200 steps, quiet at last, and of one of 100 whose other data have twice the loss, and norms of eight times the
    size; and how many the first has."""
    losses, norms = ordinary(200, seed)
    random = np.random.default_rng(seed)
    others = 2 * losses[-1] + 3 * (1 + np.arange(100)) ** -0.5 + 0.1 * random.normal(size=100)
    wilder = 8 * np.median(norms) * np.exp(0.4 * random.normal(size=100))
    first = [row_of(step, loss, norm) for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1)]
    both = zip(others, wilder, strict=True)
    return first + [row_of(201 + step, loss, norm, stage="two") for step, (loss, norm) in enumerate(both)], 200


def skipped_of(rows: Iterable[dict[str, Any]], warmup_tokens: int = 0, rules: Train = RULES) -> dict[int, str]:
    watch = Watch(rules, warmup_tokens, VOCAB_SIZE)
    verdicts = {row["step"]: watch.judge(row) for row in rows}
    return {step: verdict.reason for step, verdict in verdicts.items() if verdict.action != "go"}


@pytest.mark.parametrize("seed", range(10))
def test_a_border_to_other_data_is_no_trouble(seed: int) -> None:
    rows, _ = border(seed)
    assert skipped_of(rows) == {}


@pytest.mark.parametrize("after", [1, 5, 8, 9, 20, 33])
@pytest.mark.parametrize(("key", "value"), [("loss", 1e6), ("gradient_norm", 1e9)])
def test_what_no_change_of_data_explains_is_skipped_right_after_a_border(after: int, key: str, value: float) -> None:
    rows, of_first = border()
    rows[of_first + after - 1][key] = value
    assert list(skipped_of(rows)) == [of_first + after]


def test_what_is_missed_right_after_a_border_is_seen_once_eight_steps_are_known() -> None:
    rows, of_first = border()
    spike = 3.5 * rows[of_first]["loss"]
    for after, is_seen in ((8, False), (9, True)):
        again = [dict(row) for row in rows]
        again[of_first + after - 1]["loss"] = spike
        assert (of_first + after in skipped_of(again)) is is_seen


def test_one_spike_among_the_first_steps_of_a_stage_does_not_hide_the_next() -> None:
    rows, of_first = border()
    for after in (10, 12):
        rows[of_first + after - 1]["loss"] = 3.5 * rows[of_first]["loss"]
    assert list(skipped_of(rows)) == [of_first + 10, of_first + 12]


@pytest.mark.parametrize("step", [1, 2, 9, 30, 50])
def test_in_warm_up_a_loss_far_above_that_of_guessing_is_skipped(step: int) -> None:
    losses, norms = ordinary(60)
    losses[step - 1] = 2.9 * math.log(VOCAB_SIZE)
    rows = [row_of(at, loss, norm) for at, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1)]
    assert skipped_of(rows, warmup_tokens=6000) == {}
    rows[step - 1]["loss"] = 3.1 * math.log(VOCAB_SIZE)
    found = skipped_of(rows, warmup_tokens=6000)
    assert list(found) == [step] and "more than 3 times that of guessing among 49,152 tokens" in found[step]
    assert skipped_of(rows, 6000, Train(spike_deviations=7)) == {}, "what the message says to raise lifts this, too"


def test_in_warm_up_a_norm_of_another_order_is_skipped_once_some_are_known() -> None:
    losses, norms = ordinary(60)
    norms[:8] *= [20, 15, 10, 8, 6, 5, 4, 3]  # as first norms are
    norms[20] = norms[40] = 1e6
    rows = [row_of(at, loss, norm) for at, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1)]
    assert list(skipped_of(rows, warmup_tokens=6000)) == [21, 41]


def written(row: dict[str, Any], skipped: bool) -> bytes:
    """The row as the loop writes it: numbers that are not finite have no place in JSON."""
    kept = {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
    return json.dumps(kept | ({"skipped": "…"} if skipped else {})).encode()


@pytest.mark.parametrize("rules", [RULES, Train(drift_steps=10, skips_in_a_row=30)])
def test_a_watch_made_from_the_rows_judges_as_the_one_that_saw_them(rules: Train) -> None:
    random = np.random.default_rng(5)
    losses, norms = ordinary(1000, seed=5)
    spikes = random.random(1000) < 0.04
    spikes[300:312] = spikes[800:806] = True  # longer than a few, as before a roll-back; and over the end of a stage
    losses[spikes] += random.choice([0.5, 5, math.nan, math.inf], size=spikes.sum())
    watch, lines = Watch(rules, 2000, VOCAB_SIZE), []
    for step, (loss, norm) in enumerate(zip(losses.tolist(), norms.tolist(), strict=True), start=1):
        row = row_of(step, loss, norm, "one" if step < 804 else "two")
        if 900 < step <= 920:
            lines.append(json.dumps({"step": step, "tokens": 100 * step, "stage": "two", "passed_over": "…"}).encode())
            watch.pass_over(json.loads(lines[-1]))
            continue
        is_asked = step % 20 == 0 or 804 <= step < 850 or watch.skips_in_a_row
        again = Watch(rules, 2000, VOCAB_SIZE, newest_rows(lines, rules)) if is_asked else None
        verdict = watch.judge(row)
        if again:
            assert again.judge(row) == verdict
            assert again.skips_in_a_row == watch.skips_in_a_row
        lines.append(written(row, watch.skips_in_a_row > 0))


@pytest.mark.parametrize("after", [1, 4, 8])
def test_a_watch_made_from_the_rows_knows_the_norms_from_before_a_border(after: int) -> None:
    rows, of_first = border()
    *before, row = rows[: of_first + after]
    watch = Watch(RULES, 0, VOCAB_SIZE, newest_rows([json.dumps(one).encode() for one in before], RULES))
    assert watch.judge({**row, "gradient_norm": 1e9}).action == "skip"


def test_that_comparison_notices_a_row_that_is_missing() -> None:
    losses, norms = ordinary(300)
    rows = [row_of(step, loss, norm) for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=1)]
    limits = [Watch(RULES, 0, VOCAB_SIZE, rows[start:]).judge(row_of(301, 9.0, 1.0)).reason for start in (0, 150, 200)]
    assert limits[0] == limits[1] != limits[2]  # 128 are enough


TROUBLE = Verdict("roll_back", "the loss left", since=50)


def rolled(step: int, to: int) -> dict[str, Any]:
    return {"event": "roll_back", "step": step, "to": to, "since": step - 5, "reason": "the loss left"}


def test_a_roll_back_goes_to_the_newest_checkpoint_from_before_the_trouble() -> None:
    event = roll_back_event(TROUBLE, 57, [], [30, 40, 50, 55], most=3)
    assert event == {"event": "roll_back", "step": 57, "to": 40, "since": 50, "reason": "the loss left"}
    assert roll_back_event(TROUBLE, 57, [], [49], 3)["to"] == 49
    skipped = skip_event(Verdict("skip", "the loss is no longer finite", 50), 50)
    assert roll_back_event(TROUBLE, 57, [skipped, {"event": "went on", "step": 40}], [40], 3)["to"] == 40


def test_a_roll_back_that_led_nowhere_is_followed_by_one_further_back() -> None:
    assert roll_back_event(TROUBLE, 57, [rolled(45, to=40)], [20, 40], 3)["to"] == 20
    assert roll_back_event(TROUBLE, 57, [rolled(45, to=40)], [20, 40, 45], 3)["to"] == 20  # made while it passed over
    assert roll_back_event(TROUBLE, 57, [rolled(45, to=40)], [40], 3)["to"] == 40  # there is none
    assert roll_back_event(TROUBLE, 57, [rolled(45, to=30)], [30, 48], 3)["to"] == 48  # it did lead somewhere
    assert roll_back_event(TROUBLE, 57, [rolled(49, to=30)], [20, 30], 3)["to"] == 20  # it did not go on for a step


def test_after_so_many_roll_backs_in_vain_it_ends_and_says_what_to_do() -> None:
    events = [rolled(20, to=10), rolled(42, to=30), rolled(44, to=30), rolled(46, to=20)]
    assert roll_back_event(TROUBLE, 57, events, [20], most=4)["to"] == 20
    with pytest.raises(
        Diverged, match=r"3 roll-backs have not helped.*optimizer\.peak_learning_rate.*spike_deviations"
    ):
        roll_back_event(TROUBLE, 57, events, [20], most=3)
    with pytest.raises(Diverged, match=r"step 57: the loss left \(since step 50\), and there is no checkpoint"):
        roll_back_event(TROUBLE, 57, [], [50, 55], most=3)
    with pytest.raises(Diverged, match="none may be rolled back"):
        roll_back_event(TROUBLE, 57, [], [40], most=0)


def test_steps_between_the_checkpoint_and_the_trouble_are_passed_over() -> None:
    events = [rolled(20, to=10), {"event": "skip", "step": 25, "reason": "…"}, rolled(57, to=40)]
    over = [step for step in range(1, 70) if passed_over(events, step)]
    assert over == [*range(11, 21), *range(41, 58)]


def test_a_checkpoint_that_a_roll_back_was_to_leave_is_known() -> None:
    event = rolled(57, to=40)
    assert undone_by([event], [], 50) == event  # killed before `latest` was put back
    assert undone_by([event], [], 40) is None and undone_by([event], [], 30) is None
    assert undone_by([event], [event], 60) is None and undone_by([event], [event], 50) is None


def test_how_far_back_a_drift_may_have_begun() -> None:
    assert [earliest_drift([], step, 5) for step in (3, 4, 5, 6, 50)] == [0, 0, 1, 2, 46]
    skips = [skip_event(TROUBLE, step) for step in (44, 48)]
    assert earliest_drift(skips, 50, 5) == 45 and earliest_drift([*skips, rolled(47, to=42)], 50, 5) == 40
    assert earliest_drift([], 50, 0) == 51
