"""Trouble in the loss, seen before the optimiser steps: what is not finite, what spikes, and what drifts away.

A step whose loss or gradient norm is no finite number, or lies many deviations above those of the last steps, is skipped: no
weight changes, and its data are passed over. OLMo 2 does so (arXiv 2501.00656; OLMo-core's SkipStepOptimizer has a window of
128 steps and 6 deviations, which are ours, too). Here only rises count, a skipped step does not widen the band for the next,
and norms are compared by their logarithm, for theirs is the longer tail.

A band needs steps of its own stage after the warm-up, for another stage has other data. Until there are some, only what no change of
data explains is skipped: a loss far above that of guessing, a norm a thousand times the usual.

Where too many steps in a row are skipped, or the loss as a whole has left its band, the weights are taken to be spoilt: the run
rolls back to a checkpoint from before, and passes over the data from there to here. That is PaLM's remedy (Chowdhery et al.,
arXiv 2204.02311, section 5.1), which found that the same data did no harm to other weights.

A watch knows nothing but the rows of metrics.jsonl, so that a run that goes on takes the decisions that it would have taken.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fox.errors import Failure
from fox.recipe.schema import Train

WINDOW = 128
FEWEST = 32
"""A band of the last 128 good steps of the stage, and of 32 at least."""

_FEW = 8
_WIDER = 4
"""Of 8 to 31 steps, one that is four times as wide: the deviation of so few values may be far too small."""

_BEYOND_REASON = 0.5
"""Before that, times `train.spike_deviations` it bounds two things. The loss, in units of ln(vocabulary), which is the loss of a model
that gives every token the same chance: by default, three times that. And the norm, as a power of ten times the usual one: a thousand.

The last stage's losses are no measure of the next one's: other data may well double them, and a false alarm that goes on for some steps
ends the run. But to lose three times as much as by guessing, a model must give what comes a chance below 1 / vocabulary**3. Tokens that
no stage has had yet, and that training has pushed down, do not stand there: of a vocabulary of 49,152 that would be 1e-14. Nor is the
spread of the norms before one, for they fall tenfold in warm-up; a thousand times their median is more than other data make of it."""

_BLOCKS = 4
"""A drift is judged by the best of so many windows before it: its own first steps are in the newest one, and widen that."""

_LEAST_OF_LOSS = 0.005
_LEAST_OF_NORM = 0.1
"""A deviation is at least so much (of the loss: a share of it), however quiet the steps before were."""

_OF_MEDIAN = 1.4826  # the median absolute deviation of a normal distribution, times this, is its standard deviation
_READ = ("step", "tokens", "stage", "loss", "gradient_norm", "skipped", "passed_over")
_DRIFT = 2 / 3  # a drift's median need not lie as far out as one step's spike
_FARTHEST = 20.0  # deviations: no single value counts as farther out, or one spike would hide the next

Event = Mapping[str, Any]
Row = Mapping[str, Any]


class Diverged(Failure):
    """Training was given up for the trouble in its loss, and for nothing else."""


@dataclass(frozen=True)
class Verdict:
    """What to do with a step whose gradient is known. `since` is the first step of the trouble, counted from 1."""

    action: Literal["go", "skip", "roll_back"]
    reason: str = ""
    since: int = 0


class Watch:
    """Judges each step by those before it. `rows` are those before it of metrics.jsonl, or the `newest_rows` of them."""

    def __init__(self, rules: Train, warmup_tokens: int, vocab_size: int, rows: Iterable[Row] = ()) -> None:
        self._rules, self._warmup_tokens, self._vocab_size = rules, warmup_tokens, vocab_size
        self._stage: str | None = None
        self._good: deque[tuple[int, float, float]] = deque(maxlen=_steps_known(rules))
        self._norms: deque[float] = deque(maxlen=WINDOW)
        """Logarithms of the newest good steps' norms, of warm-up and of other stages, too."""
        self._skipped: list[Row] = []
        for row in rows:
            self._remember(row)

    @property
    def skips_in_a_row(self) -> int:
        """How many of the newest steps were skipped, one after the other."""
        return len(self._skipped)

    def judge(self, row: Row) -> Verdict:
        """What to do with a step, told by `step`, `tokens`, `stage`, `loss` and `gradient_norm` of its row; and remember it."""
        self._enter(row["stage"])
        reason = self._spike(row["loss"], row["gradient_norm"])
        self._remember({**row, "skipped": reason} if reason else row)
        if len(self._skipped) >= self._rules.skips_in_a_row:
            steps = len(self._skipped)
            return Verdict("roll_back", f"{steps} steps in a row were skipped: {reason}", self._skipped[0]["step"])
        if reason:
            return Verdict("skip", reason, self._skipped[0]["step"])
        return self._drift() or Verdict("go")

    def pass_over(self, row: Row) -> None:
        """Remember a step that was not done at all."""
        self._remember(row)

    def _enter(self, stage: str) -> None:
        """Another stage has other data: its losses say nothing of these."""
        if stage != self._stage:
            self._stage = stage
            self._good.clear()

    def _remember(self, row: Row) -> None:
        self._enter(row["stage"])
        if "skipped" in row:
            self._skipped.append(row)
            return
        # One that stood alone did no harm to the weights, and may be of a rare kind of data: it widens the band for the next.
        # But of a few steps, whose band is wide as it is, it would make one that nothing leaves.
        is_rare = len(self._skipped) == 1 and len(self._good) >= FEWEST and _tells_of(self._skipped[0], row["stage"])
        alone = self._skipped if is_rare else []
        self._skipped = []
        if "passed_over" in row:
            return
        self._norms.append(_log(row["gradient_norm"]))
        # While the rate still rises, so may the loss, as in models that had come to rest (arXiv 2308.04014).
        if row["tokens"] > self._warmup_tokens:
            self._good.extend((seen["step"], seen["loss"], _log(seen["gradient_norm"])) for seen in (*alone, row))

    def _spike(self, loss: float, norm: float) -> str:
        """What is wrong with a step by itself, or nothing."""
        for name, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):
                return f"the {name} is no longer finite"
        newest = list(self._good)[-WINDOW:]
        if len(newest) < _FEW:
            return self._beyond_reason(loss, norm)
        limit = self._rules.spike_deviations * (1 if len(newest) >= FEWEST else _WIDER)
        far, usual = _above(loss, [loss for _, loss, _ in newest], _LEAST_OF_LOSS, relative=True)
        if far > limit:
            return f"the loss {loss:.4g} is {far:.1f} deviations above the usual {usual:.4g}"
        far, usual = _above(_log(norm), [norm for _, _, norm in newest], _LEAST_OF_NORM)
        if far > limit:
            return f"the gradient norm {norm:.4g} is {far:.1f} deviations above the usual {math.exp(usual):.4g}"
        return ""

    def _beyond_reason(self, loss: float, norm: float) -> str:
        """What is wrong with a step that no band tells of: in warm-up, and where a stage begins."""
        times = self._rules.spike_deviations * _BEYOND_REASON
        if loss > times * math.log(self._vocab_size):
            guessing = f"{times:g} times that of guessing among {self._vocab_size:,} tokens"
            return f"the loss {loss:.4g} is more than {guessing}"
        usual = _median(self._norms) if len(self._norms) >= _FEW else math.inf
        if _log(norm) > usual + times * math.log(10):
            return f"the gradient norm {norm:.4g} is more than 10^{times:g} times the usual {math.exp(usual):.4g}"
        return ""

    def _drift(self) -> Verdict | None:
        """A loss that has risen as a whole, though no step of it was a spike: its newest steps against those before them."""
        losses = [loss for _, loss, _ in self._good]
        recent, before = losses[-self._rules.drift_steps :], losses[: -self._rules.drift_steps]
        blocks = [before[max(0, end - WINDOW) : end] for end in range(len(before), FEWEST - 1, -WINDOW)]
        if not blocks:
            return None
        median = _median(recent)
        far, usual = _above(median, min(blocks, key=_median), _LEAST_OF_LOSS, relative=True)
        if far <= self._rules.spike_deviations * _DRIFT:
            return None
        reason = (
            f"the median loss of {len(recent)} steps, {median:.4g}, is {far:.1f} deviations above the usual {usual:.4g}"
        )
        return Verdict("roll_back", reason, self._good[-len(recent)][0])


def newest_rows(lines: Sequence[bytes | str], rules: Train) -> list[dict[str, Any]]:
    """Of the lines of metrics.jsonl, as many as make up all that a watch knows, and of their keys those that it reads.

    A step that was skipped counts or not by whether there was a band then, so there is one before all that is known.
    """
    rows: list[dict[str, Any]] = []
    good = 0
    for line in reversed(lines):
        row = json.loads(line)
        if good == FEWEST + _steps_known(rules):
            break
        rows.append({key: row[key] for key in _READ if key in row})
        good += "loss" in row and "skipped" not in row
    return rows[::-1]


def roll_back_event(
    verdict: Verdict, step: int, events: Sequence[Event], checkpoints: Iterable[int], most: int
) -> dict[str, Any]:
    """The roll-back from `step` as it goes on record: `to` is the step of the checkpoint to go back to.

    The newest one from before the trouble; where the last roll-back led nowhere, one that is older than that one's, as long as
    there is one. Raises Diverged where there is none at all, or after `most` roll-backs that led nowhere.
    """
    before = sorted(kept for kept in checkpoints if kept < verdict.since)
    in_vain = _in_vain(events, before[-1] if before else 0, verdict.since)
    if not before:
        raise _given_up(step, verdict, "there is no checkpoint from before the trouble")
    if len(in_vain) >= most:
        raise _given_up(
            step, verdict, f"{len(in_vain)} roll-backs have not helped" if most else "none may be rolled back"
        )
    older = [kept for kept in before if kept < in_vain[-1]["to"]] if in_vain else before
    return {
        "event": "roll_back",
        "step": step,
        "to": (older or before)[-1],
        "since": verdict.since,
        "reason": verdict.reason,
    }


def skip_event(verdict: Verdict, step: int) -> dict[str, Any]:
    """A skipped step as it goes on record."""
    return {"event": "skip", "step": step, "reason": verdict.reason}


def passed_over(events: Iterable[Event], step: int) -> Event | None:
    """The roll-back that passes over `step` (counted from 1), where there is one."""
    return next(
        (event for event in events if event["event"] == "roll_back" and event["to"] < step <= event["step"]), None
    )


def unchanged_since(events: Sequence[Event], step: int) -> int | None:
    """The first of the steps, one after the other up to `step` (counted from 1), that changed no weight; None where that one did."""
    skipped = {event["step"] for event in events if event["event"] == "skip"}
    first = step
    while first > 0 and (first in skipped or passed_over(events, first)):
        first -= 1
    return first + 1 if first < step else None


def looks_back(rules: Train) -> int:
    """How many steps old trouble may be that is rolled back from; 0 where nothing is."""
    return rules.drift_steps if rules.roll_backs else 0


def earliest_drift(events: Sequence[Event], step: int, drift_steps: int) -> int:
    """The first of the last `drift_steps` steps up to `step` that changed weights, counted from 1: no drift that is yet to be seen began
    before it. 0 where there are fewer."""
    skipped = {event["step"] for event in events if event["event"] == "skip"}
    first = step + 1
    while drift_steps and first > 0:
        first -= 1
        drift_steps -= not (first in skipped or passed_over(events, first))
    return first


def undone_by(recorded: Iterable[Event], known: Sequence[Event], step: int) -> Event | None:
    """The roll-back by which the checkpoint of `step`, which knows the events in `known`, was to be left; a kill came between."""
    for event in recorded:
        if event["event"] == "roll_back" and event["to"] < step and event not in known:
            return event
    return None


def _in_vain(events: Sequence[Event], newest: int, since: int) -> list[Event]:
    """The last roll-backs, oldest first, that led nowhere: trouble went on at once, or no checkpoint was made further on."""
    chain: list[Event] = []
    for event in reversed([event for event in events if event["event"] == "roll_back"]):
        if newest > event["step"] and since > event["step"] + 1:
            break
        chain.insert(0, event)
        newest, since = event["to"], event["since"]
    return chain


def _given_up(step: int, verdict: Verdict, why: str) -> Diverged:
    return Diverged(
        f"step {step}: {verdict.reason} (since step {verdict.since}), and {why}. "
        "Lower optimizer.peak_learning_rate, or lengthen schedule.warmup_tokens, and start another run with --out, "
        "or train again with --redo pretrain (of tuning: --redo tune). events.jsonl has what was skipped. Where losses like "
        "these are what your data have, raise train.spike_deviations and run the same command again: it goes on."
    )


def _steps_known(rules: Train) -> int:
    return _BLOCKS * WINDOW + rules.drift_steps


def _above(value: float, others: Sequence[float], least: float, relative: bool = False) -> tuple[float, float]:
    """How many deviations `value` lies above the median of `others`, or 0; and that median.

    Of two deviations the larger one counts: that about the median, and that which single steps of another kind widen.
    """
    centre = _median(others)
    if value <= centre:
        return 0.0, centre
    least = max(least * abs(centre) if relative else least, math.ulp(0.0))
    about_median = max(_OF_MEDIAN * _median([abs(other - centre) for other in others]), least)
    farthest = centre + _FARTHEST * about_median
    clipped = [min(other, farthest) for other in others]
    mean = math.fsum(clipped) / len(clipped)
    standard = math.hypot(*[other - mean for other in clipped]) / math.sqrt(len(clipped) - 1)
    return (value - centre) / max(about_median, standard), centre


def _median(values: Sequence[float]) -> float:
    """The lower of two in the middle: a value that was there."""
    return sorted(values)[(len(values) - 1) // 2]


def _tells_of(row: Row, stage: str) -> bool:
    numbers = [row.get(key, math.nan) for key in ("loss", "gradient_norm")]
    return row["stage"] == stage and all(map(math.isfinite, numbers))


def _log(norm: float) -> float:
    """Of a gradient that is zero, a number as small as any."""
    return math.log(max(norm, 1e-30))
