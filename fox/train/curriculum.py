"""Which tokens are trained on at which step: a pure function of the recipe, the seed, the shards' sizes and the step.

A stage is a sequence of rows. Each row belongs to one source; the rows of a source are spread evenly, so that every step
has the stage's mixture. A row is cut into chunks of its source's length, each a window of that source's endless stream
(its documents in a new order every epoch, one after the other). Every stage takes up each stream where the last one left
it, and inside a stage, windows come in shuffled order, but no epoch begins before the last one has ended: nothing is seen
twice before everything was seen once (but for the one window that lies across the seam of two epochs).

Nothing here depends on what ran before: any step can be asked for at any time, which is what makes resuming exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fox.errors import UserError
from fox.recipe.schema import Recipe, Stage, Tune

_PERIOD_ROWS = 1000
"""In every so many rows each source has its exact share, to 1/1000."""


@dataclass(frozen=True)
class Window:
    """A chunk to train on: `length` tokens of the stream of `source`, from `start` on, and the token after them as a target."""

    source: str
    start: int
    length: int


@dataclass(frozen=True)
class StageOrder:
    """The order of one stage's data. `shares` sum to 1; `starts` say where in its stream, which comes round after
    `epoch_tokens`, each source takes up."""

    name: str
    stage: Stage
    seed: int
    shares: Mapping[str, float]
    chunk_lengths: Mapping[str, int]
    starts: Mapping[str, int]
    epoch_tokens: Mapping[str, int]

    @property
    def recipe_key(self) -> str:
        """Where the recipe has this stage."""
        return "tune" if isinstance(self.stage, Tune) else f"stage.{self.name}"

    @property
    def rows_a_step(self) -> int:
        return self.stage.batch_tokens // self.stage.row_length

    @property
    def num_rows(self) -> int:
        return self.stage.steps * self.rows_a_step

    def rows_of_step(self, step: int) -> list[list[Window]]:
        """The rows of the stage's `step` (from 0), each as its windows, in order."""
        first = step * self.rows_a_step
        return [self._row(row) for row in range(first, first + self.rows_a_step)]

    def tokens_of(self, source: str) -> int:
        """How many tokens of a source's stream the whole stage takes."""
        return self._rows_before(self.num_rows, source) * self.stage.row_length

    def _row(self, row: int) -> list[Window]:
        period, place = divmod(row, self._period)
        source = self._pattern(period)[place]
        number = self._rows_before(row, source)
        length = self.chunk_lengths[source]
        chunks = self.stage.row_length // length
        return [self._window(source, number * chunks + chunk, length) for chunk in range(chunks)]

    def _window(self, source: str, number: int, length: int) -> Window:
        """The `number`-th window of a source: it changes places with those that begin in the same epoch."""
        start, epoch_tokens = self.starts[source], self.epoch_tokens[source]
        epoch = (start + number * length) // epoch_tokens
        first, end = (max(0, -((start - border * epoch_tokens) // length)) for border in (epoch, epoch + 1))
        end = min(end, self.tokens_of(source) // length)
        place = first + shuffled(number - first, end - first, key_of(self.seed, self.name, source, str(epoch)))
        return Window(source, start + place * length, length)

    @property
    def _period(self) -> int:
        return min(_PERIOD_ROWS, self.num_rows)

    def _quota(self) -> dict[str, int]:
        """Rows of each source in a period, by largest remainder."""
        exact = {source: share * self._period for source, share in self.shares.items()}
        quota = {source: int(rows) for source, rows in exact.items()}
        left = self._period - sum(quota.values())
        for source in sorted(exact, key=lambda s: (quota[s] - exact[s], s))[:left]:
            quota[source] += 1
        return quota

    def _pattern(self, period: int) -> tuple[str, ...]:
        return _interleaved(tuple(sorted(self._quota().items())), key_of(self.seed, self.name, str(period)))

    def _rows_before(self, row: int, source: str) -> int:
        period, place = divmod(row, self._period)
        begun = self._pattern(period)[:place].count(source) if place else 0
        return period * self._quota()[source] + begun


def curriculum(recipe: Recipe, stages: Mapping[str, Stage], train_tokens: Mapping[str, int]) -> list[StageOrder]:
    """The order of every stage, one after the other. `train_tokens` has the tokens of each source's training shard.

    Raises UserError where a source's share is too small to get a single row.
    """
    starts = dict.fromkeys(recipe.source, 0)
    orders = []
    for name, stage in stages.items():
        shares, lengths = _shares(recipe, stage, train_tokens)
        order = StageOrder(name, stage, recipe.seed, shares, lengths, dict(starts), train_tokens)
        for source, share in shares.items():
            taken = order.tokens_of(source)
            if not taken:
                raise UserError(
                    f"{order.recipe_key}.mix",
                    {source: round(share, 6)},
                    problem=f"is too small a share for one row in {order._period}",
                    mend=f"Give it a weight of its own, -o {order.recipe_key}.mix.{source}=0.1, or leave the source out.",
                )
            starts[source] += taken
        orders.append(order)
    return orders


def shuffled(index: int, size: int, key: int) -> int:
    """Where `index` goes in a shuffle of range(size): a bijection that needs no table, by a Feistel network with cycle walking.

    (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.) Not for secrets: only for order.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for turn in range(4):
            left, right = right, left ^ (_mixed(right ^ _mixed(key + turn)) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def _shares(recipe: Recipe, stage: Stage, train_tokens: Mapping[str, int]) -> tuple[dict[str, float], dict[str, int]]:
    """Each source's share of the rows and its chunk length; a kind's weight is divided by its sources' tokens."""
    total = sum(stage.mix.values())
    period = min(_PERIOD_ROWS, stage.steps * stage.batch_tokens // stage.row_length)
    shares: dict[str, float] = {}
    lengths: dict[str, int] = {}
    for key, weight in stage.mix.items():
        sources = recipe.sources_of(key, stage.mix)
        tokens = sum(train_tokens[source] for source in sources)
        parts = {source: train_tokens[source] / tokens for source in sources}
        one_row = total / weight / period
        for source, part in _at_least(parts, one_row).items():
            shares[source] = weight / total * part
            lengths[source] = stage.chunk_length[key] if isinstance(stage.chunk_length, dict) else stage.chunk_length
    return shares, lengths


def _at_least(parts: dict[str, float], least: float) -> dict[str, float]:
    """Parts of one with the small ones raised to `least`, so that a few documents beside many are not left out.

    The others give in proportion. Where not all can have so much, nothing is changed.
    """
    small = [name for name, part in parts.items() if part < least]
    if not small or least * len(parts) > 1:
        return parts
    left = (1 - least * len(small)) / sum(part for name, part in parts.items() if name not in small)
    return {name: least if name in small else part * left for name, part in parts.items()}


@lru_cache(maxsize=64)
def _interleaved(quota: Sequence[tuple[str, int]], key: int) -> tuple[str, ...]:
    """A period's rows: each source's are evenly spaced, from a random offset of its own."""
    offsets = random_numbers(key, len(quota)) / 2.0**64
    places = np.concatenate(
        [(np.arange(rows) + offset) / max(1, rows) for (_, rows), offset in zip(quota, offsets, strict=True)]
    )
    names = [source for source, rows in quota for _ in range(rows)]
    return tuple(names[place] for place in np.argsort(places, kind="stable"))


def key_of(seed: int, *names: str) -> int:
    """A number to seed randomness with, of its own for each seed and names."""
    key = _mixed(seed)
    for name in names:
        for byte in name.encode():
            key = _mixed(key ^ byte)
        key = _mixed(key ^ 0x100)
    return key


def random_numbers(key: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` numbers below 2^64 that depend on `key` alone, not on a library's version: SplitMix64's sequence."""
    with np.errstate(over="ignore"):
        value = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


def _mixed(value: int) -> int:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
