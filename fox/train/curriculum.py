"""Which rows are trained on at which step: a pure function of the recipe, the seed, the sizes of the shards, the step and the
record of changed mixtures that the checkpoint carries.

A stage is a sequence of rows, and a row is a number of chunks of one *lane*: a source at one chunk length. The rows of each
lane are spread evenly, so that every step has the stage's mixture, and over the stage each lane has its share to the row.
Which documents are in the n-th chunk of a lane is for `packing` to say.

Nothing here depends on what ran before or on who asks: any step can be asked for at any time, by any number of workers, and
a worker's part of a step is a slice of its rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fox.errors import UserError
from fox.recipe.schema import Recipe, Tune
from fox.recipe.stage import Stage
from fox.train.shuffle import key_of, random_numbers

Event = Mapping[str, Any]
"""An entry of the run's record. Those of a changed mixture are `{"event": "mix", "step": n, "stage": name, "mix": {source: share}}`:
from step n of the run on (counted from 1, as in metrics.jsonl) its stage has these shares, which sum to 1."""

_PERIOD_ROWS = 1000
"""Lanes are interleaved so many rows at a time; in stages of more than a million rows, a thousandth of the stage."""

MOST_MISSED = 0.005
"""Of a stage's tokens: a share that is missed by more than this is told."""


@dataclass(frozen=True, order=True)
class Lane:
    """A source at one chunk length, in tokens."""

    source: str
    length: int


@dataclass(frozen=True)
class Chunk:
    """The `number`-th chunk (from 0) that a stage takes of a lane."""

    stage: str
    lane: Lane
    number: int


Row = Sequence[Chunk]
"""Chunks of one lane that together have the stage's row length."""


@dataclass(frozen=True)
class _Mixture:
    """The lanes' shares from `first_row` of a stage on, and how many rows each lane had given before."""

    first_row: int
    shares: tuple[float, ...]
    given: tuple[int, ...]


@dataclass(frozen=True)
class StageOrder:
    """The order of one stage's rows. `shares` of its lanes sum to 1; `first_step` (from 0) is its place in the run."""

    name: str
    stage: Stage
    seed: int
    first_step: int
    shares: Mapping[Lane, float]
    changes: tuple[_Mixture, ...] = ()

    @property
    def recipe_key(self) -> str:
        """Where the recipe has this stage."""
        return "tune" if isinstance(self.stage, Tune) else f"stage.{self.name}"

    @property
    def steps(self) -> int:
        return self.stage.steps

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return tuple(self.shares)

    @property
    def num_rows(self) -> int:
        return self._row_of_step(self.steps)

    def batch_tokens_of(self, step: int) -> int:
        """Tokens of the stage's `step` (from 0), padding included."""
        return self.stage.batch_tokens_of(step)

    def tokens_before(self, step: int) -> int:
        """Tokens of the stage's steps before `step` (from 0)."""
        return self.stage.tokens_before(step)

    def rows_of_step(self, step: int) -> list[Row]:
        """All rows of the stage's `step` (from 0). A rank takes a slice of them."""
        return [self._row(row) for row in range(self._row_of_step(step), self._row_of_step(step + 1))]

    def rows_of(self, lane: Lane) -> int:
        """How many rows the whole stage takes of a lane."""
        return self._rows_before(self.num_rows)[self.lanes.index(lane)]

    def chunks_of(self, lane: Lane) -> int:
        """How many chunks the whole stage takes of a lane."""
        return self.rows_of(lane) * (self.stage.row_length // lane.length)

    def rows_given(self, step: int) -> dict[Lane, int]:
        """The rows of each lane in the stage's steps before `step` (from 0)."""
        return dict(zip(self.lanes, self._rows_before(self._row_of_step(step)), strict=True))

    def tokens_given(self, step: int) -> dict[str, int]:
        """The tokens of each source in the stage's steps before `step` (from 0), padding included."""
        given: dict[str, int] = {}
        for lane, rows in self.rows_given(step).items():
            given[lane.source] = given.get(lane.source, 0) + rows * self.stage.row_length
        return given

    def mix_at(self, step: int) -> dict[str, float]:
        """Each source's share of the tokens at the stage's `step` (from 0)."""
        mixture = self._mixtures[self._place_in_mixtures(self._row_of_step(step))]
        return _by_source(self.lanes, mixture.shares)

    def after(self, events: Iterable[Event]) -> StageOrder:
        """This order with the mixtures that were changed in its stage. Other events of the record change no row."""
        order = self
        for event in events:
            if event["event"] == "mix" and event["stage"] == self.name:
                order = order._with_mix(event["step"] - 1 - self.first_step, event["mix"])
        return order

    def _with_mix(self, step: int, mix: Mapping[str, float]) -> StageOrder:
        row = self._row_of_step(step)
        at_first = _by_source(self.lanes, tuple(self.shares.values()))
        shares = tuple(mix[lane.source] * share / at_first[lane.source] for lane, share in self.shares.items())
        change = _Mixture(row, shares, self._rows_before(row))
        return replace(self, changes=(*self.changes, change))

    @property
    def _mixtures(self) -> tuple[_Mixture, ...]:
        return (_Mixture(0, tuple(self.shares.values()), (0,) * len(self.shares)), *self.changes)

    def _place_in_mixtures(self, row: int) -> int:
        return bisect_right(self.changes, row, key=lambda change: change.first_row)

    def _row_of_step(self, step: int) -> int:
        return self.stage.tokens_before(step) // self.stage.row_length

    def _row(self, row: int) -> Row:
        at, number = self._lane_of(row)
        lane = self.lanes[at]
        chunks = self.stage.row_length // lane.length
        return [Chunk(self.name, lane, number * chunks + chunk) for chunk in range(chunks)]

    def _lane_of(self, row: int) -> tuple[int, int]:
        """Of which lane a row is, and how many of that lane's come before it."""
        mixture, before, lanes, numbers, place = self._period_of(row)
        at = int(lanes[place])
        return at, mixture.given[at] + before[at] + int(numbers[place])

    def _rows_before(self, row: int) -> tuple[int, ...]:
        """How many rows of each lane come before `row`."""
        if row == 0:
            return (0,) * len(self.shares)
        at, number = self._lane_of(row - 1)
        mixture, before, lanes, _, place = self._period_of(row - 1)
        counts = np.bincount(lanes[: place + 1], minlength=len(self.shares))
        assert mixture.given[at] + before[at] + counts[at] == number + 1
        return tuple(
            given + whole + int(count) for given, whole, count in zip(mixture.given, before, counts, strict=True)
        )

    def _period_of(
        self, row: int
    ) -> tuple[_Mixture, tuple[int, ...], npt.NDArray[np.integer], npt.NDArray[np.integer], int]:
        """The mixture that a row has, the lanes' rows in it before the row's period, the period's pattern, and the row's place."""
        which = self._place_in_mixtures(row)
        mixture = self._mixtures[which]
        rows = self.num_rows - mixture.first_row
        period_rows = max(_PERIOD_ROWS, -(-rows // 1000))
        period, place = divmod(row - mixture.first_row, period_rows)
        given = _given_by_period(mixture.shares, rows, period_rows)
        quota = tuple(after - before for before, after in zip(given[period], given[period + 1], strict=True))
        lanes, numbers = _interleaved(quota, key_of(self.seed, self.name, str(which), str(period)))
        return mixture, given[period], lanes, numbers, place


def curriculum(recipe: Recipe, stages: Mapping[str, Stage], train_tokens: Mapping[str, int]) -> list[StageOrder]:
    """The order of every stage, one after the other. `train_tokens` has the tokens of each source's training shard.

    Raises UserError where a source's share, or a chunk length's, is too small to get a single row.
    """
    orders: list[StageOrder] = []
    for name, stage in stages.items():
        first_step = orders[-1].first_step + orders[-1].steps if orders else 0
        order = StageOrder(name, stage, recipe.seed, first_step, _shares(recipe, stage, train_tokens))
        for lane, share in order.shares.items():
            if not order.rows_of(lane):
                raise _too_small(order, lane, share)
        orders.append(order)
    return orders


def mixture_warnings(recipe: Recipe, orders: Iterable[StageOrder]) -> list[str]:
    """What to say of stages that have too few rows for their mixture. Where it follows the loss, it is only where that begins."""
    warnings = []
    for order in orders:
        if order.stage.mix_follows is not None:
            continue
        mix, given = order.stage.mix, order.tokens_given(order.steps)
        for key, weight in mix.items():
            asked = weight / sum(mix.values())
            share = sum(given[source] for source in recipe.sources_of(key, mix)) / sum(given.values())
            if abs(share - asked) > MOST_MISSED:
                warnings.append(
                    f"{order.recipe_key}.mix: {key} gets {100 * share:.1f} % of the tokens, and not {100 * asked:.1f} %: the stage has "
                    f"{order.num_rows} rows of {order.stage.row_length} tokens to share out. More tokens, or a shorter longest chunk, come nearer."
                )
    return warnings


def told(rows: Iterable[Row], row_length: int) -> dict[str, dict[str, float]]:
    """What metrics.jsonl says of a step's rows: `mix`, the tokens of each source, and `chunk_length`, their mean chunk's."""
    tokens: dict[str, int] = {}
    by_length: dict[str, float] = {}
    for row in rows:
        lane = row[0].lane
        tokens[lane.source] = tokens.get(lane.source, 0) + row_length
        by_length[lane.source] = by_length.get(lane.source, 0.0) + row_length * lane.length
    mean = {source: by_length[source] / tokens[source] for source in tokens}
    lengths: dict[str, float] = {
        source: int(length) if length == int(length) else length for source, length in mean.items()
    }
    return {"mix": {**tokens}, "chunk_length": lengths}


def _too_small(order: StageOrder, lane: Lane, share: float) -> UserError:
    alone = sum(other.source == lane.source for other in order.shares) == 1
    key = f"{order.recipe_key}.{'mix' if alone else 'chunk_length'}"
    part: dict[str, float] = {lane.source if alone else str(lane.length): round(share, 6)}
    mend = f"Give it a weight of its own, -o {key}.{lane.source}=0.1, or leave the source out."
    if not alone:
        mend = f"Give that length of {lane.source} more, or leave it out; or give the stage more tokens."
    return UserError(key, part, problem=f"is too small a share for one row in {order.num_rows}", mend=mend)


def _shares(recipe: Recipe, stage: Stage, train_tokens: Mapping[str, int]) -> dict[Lane, float]:
    """Each lane's share of the rows; a kind's weight is divided by its sources' tokens."""
    total = sum(stage.mix.values())
    rows = stage.total_tokens // stage.row_length
    shares: dict[Lane, float] = {}
    for key, weight in stage.mix.items():
        sources = recipe.sources_of(key, stage.mix)
        tokens = sum(train_tokens[source] for source in sources)
        parts = {source: train_tokens[source] / tokens for source in sources}
        lengths = stage.lengths_of(key)
        least = total / weight / rows / min(lengths.values())  # a row for each of its lanes
        for source, part in _at_least(parts, least).items():
            for length, of_length in lengths.items():
                shares[Lane(source, length)] = weight / total * part * of_length
    return shares


def _at_least(parts: dict[str, float], least: float) -> dict[str, float]:
    """Parts of one with the small ones raised to `least`, so that a few documents beside many are not left out.

    The others give in proportion. Where not all can have so much, nothing is changed.
    """
    small = [name for name, part in parts.items() if part < least]
    if not small or least * len(parts) > 1:
        return parts
    left = (1 - least * len(small)) / sum(part for name, part in parts.items() if name not in small)
    return {name: least if name in small else part * left for name, part in parts.items()}


def _by_source(lanes: Sequence[Lane], shares: Sequence[float]) -> dict[str, float]:
    total: dict[str, float] = {}
    for lane, share in zip(lanes, shares, strict=True):
        total[lane.source] = total.get(lane.source, 0.0) + share
    return total


@lru_cache(maxsize=64)
def _given_by_period(shares: tuple[float, ...], rows: int, period_rows: int) -> tuple[tuple[int, ...], ...]:
    """How many rows each lane has given before each period, and at the end: its share of them, to the row."""
    return tuple(_given(shares, rows, period_rows))


def _given(shares: tuple[float, ...], rows: int, period_rows: int) -> Iterator[tuple[int, ...]]:
    given = [0] * len(shares)
    yield tuple(given)
    for first in range(0, rows, period_rows):
        end = min(rows, first + period_rows)
        wanted = [share * end - before for share, before in zip(shares, given, strict=True)]
        quota = [max(0, int(rows_wanted)) for rows_wanted in wanted]
        while (left := end - first - sum(quota)) != 0:  # largest remainder first, smallest last
            by_remainder = sorted(range(len(quota)), key=lambda lane: (quota[lane] - wanted[lane], lane))
            if left < 0:
                quota[next(lane for lane in reversed(by_remainder) if quota[lane])] -= 1
            else:
                quota[by_remainder[0]] += 1
        given = [before + now for before, now in zip(given, quota, strict=True)]
        yield tuple(given)


@lru_cache(maxsize=16)
def _interleaved(quota: tuple[int, ...], key: int) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """A period's rows: of which lane each is, and how many of the lane's come before it in the period.

    Each lane's are evenly spaced, from a random offset of its own.
    """
    offsets = random_numbers(key, len(quota)) / 2.0**64
    places = np.concatenate(
        [(np.arange(rows) + offset) / max(1, rows) for rows, offset in zip(quota, offsets, strict=True)]
    )
    order = np.argsort(places, kind="stable")
    lanes = np.repeat(np.arange(len(quota)), quota)[order]
    numbers = np.concatenate([np.arange(rows) for rows in quota])[order]
    return lanes, numbers
