"""A source's documents as an endless sequence: all of them in one order, then all of them in another, and so on.

Stages take documents from where the last one ended. What a stage took and did not need is `left`, and is the first that the next
one gets: all of it that is of an older epoch before anything of a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fox.formats.token_shards import Shard
from fox.train.best_fit import Numbers
from fox.train.pieces import NOTHING, Pieces, together
from fox.train.shuffle import key_of, shuffled_all

GROUP_DOCUMENTS = 65_536
"""Documents that are packed together, at most: enough for hardly any room to be left, little enough for any memory."""
GROUP_TOKENS = 1 << 28

OfEpoch = tuple[int, Pieces]
"""Pieces of one epoch of a source, and which one that is (from 0)."""


@dataclass(frozen=True)
class Group:
    """Pieces of an epoch in order, and which lane each is dealt to. `next` is the place in the sequence after them; `back` were not dealt."""

    epoch: int
    next: int
    pieces: Pieces
    lane_of: Numbers
    back: Pieces

    def of(self, lane: int) -> Pieces:
        return self.pieces[self.lane_of == lane]

    def dealt(self, lane: int) -> int:
        """The tokens that a lane is dealt."""
        return self.of(lane).tokens


class Stock:
    """How many documents of a source's sequence are `taken`, and what of these no chunk has got yet, the oldest epoch first."""

    def __init__(self, name: str, shard: Shard, seed: int, taken: int = 0, left: Iterable[OfEpoch] = ()) -> None:
        self.name, self.shard, self._seed = name, shard, seed
        self.taken = taken
        self.left = list(left)

    @property
    def epochs(self) -> float:
        return self.taken / len(self.shard) if self.taken else 0.0

    def has(self, most: int) -> bool:
        return self.taken < most or len(self.left) > 0

    def documents_within(self, epochs: float) -> int:
        """How many documents of the sequence it takes to have the tokens of so many epochs."""
        whole, part = divmod(epochs, 1)
        documents = int(whole) * len(self.shard)
        wanted, first = part * len(self.shard.tokens), 0
        while wanted > 0 and first < len(self.shard):
            end = min(first + GROUP_DOCUMENTS, len(self.shard))
            ends = np.cumsum(self._documents(int(whole), first, end).lengths)
            documents += min(len(ends), int(np.searchsorted(ends, wanted)) + 1)
            wanted, first = wanted - int(ends[-1]), end
        return documents

    def group(
        self, first: int, most: int, left: Sequence[OfEpoch], shares: Mapping[int, float], needs: Mapping[int, float]
    ) -> Group:
        """The first of what is `left` and the documents from the `first`-th on, of one epoch and before the `most`-th, dealt to lanes
        by `shares`; with `needs`, until each has so many tokens."""
        epoch, place = divmod(first, len(self.shard))
        end = min(place + GROUP_DOCUMENTS, len(self.shard), place + most - first)
        before = NOTHING
        if left:
            of, before = left[0]
            if first >= most or of != epoch or len(left) > 1:  # of an epoch that has no more, or what is left has
                epoch, end = of, place
        pieces = together([before, self._documents(epoch, place, max(place, end))])
        few = max(1, int(np.searchsorted(np.cumsum(pieces.lengths), GROUP_TOKENS, side="right")))
        lane_of = _deal(pieces.lengths[:few], shares, needs)
        dealt = len(lane_of)
        return Group(epoch, first + max(0, dealt - len(before)), pieces[:dealt], lane_of, before[dealt:])

    def take(self, group: Group, given_back: Sequence[Pieces]) -> None:
        """Count a group as taken, but for what was not dealt and what lanes gave back."""
        self.taken = group.next
        rest = together([group.back, *given_back])
        self.left[:1] = [(group.epoch, rest)] if len(rest) else []

    def _documents(self, epoch: int, first: int, end: int) -> Pieces:
        """Documents by their places in an epoch's order."""
        key = key_of(self._seed, self.name, str(epoch))
        documents = shuffled_all(np.arange(first, end), len(self.shard), key)
        starts = first_tokens(self.shard, documents)
        return Pieces(starts, self.shard.ends[documents] - starts)


def to_rows(left: Iterable[OfEpoch]) -> Numbers:
    """Pieces of epochs as one array, a row each: epoch, first token, and how many tokens."""
    rows = [np.empty((0, 3), dtype=np.int64)]
    rows += [np.column_stack([np.full(len(of), epoch), of.starts, of.lengths]) for epoch, of in left]
    return np.concatenate(rows)


def joined(rows: Numbers, shard: Shard) -> Numbers:
    """Rows of pieces, with those that follow each other in one document and epoch as one, at the place of the first of them.

    So a document of which nothing was read is whole again, into whatever chunks it was cut.
    """
    if not len(rows):
        return rows
    by_place = rows[(order := np.lexsort((rows[:, 1], rows[:, 0])))]
    epoch, start, length = by_place.T
    begins = np.ones(len(rows), dtype=bool)
    same = (epoch[1:] == epoch[:-1]) & (start[1:] == start[:-1] + length[:-1])
    begins[1:] = ~same | (first_tokens(shard, documents_of(shard, Pieces(start[1:], length[1:]))) == start[1:])
    at = np.flatnonzero(begins)
    made = np.column_stack([epoch[at], start[at], np.add.reduceat(length, at)])
    return made[np.argsort(np.minimum.reduceat(order, at), kind="stable")]


def from_rows(rows: Numbers) -> list[OfEpoch]:
    """The other way round: the oldest epoch first, in the rows' order, a group's documents at a time."""
    left: list[OfEpoch] = []
    for epoch in np.unique(rows[:, 0]).tolist():
        of = rows[rows[:, 0] == epoch]
        for at in range(0, len(of), GROUP_DOCUMENTS):
            some = of[at : at + GROUP_DOCUMENTS]
            left.append((epoch, Pieces(some[:, 1], some[:, 2])))
    return left


def first_tokens(shard: Shard, documents: Numbers) -> Numbers:
    """Where each of some documents begins."""
    return np.where(documents > 0, shard.ends[documents - 1], 0)


def documents_of(shard: Shard, pieces: Pieces) -> Numbers:
    """Of which document each piece is."""
    return np.searchsorted(shard.ends, pieces.starts, side="right")


def _deal(lengths: Numbers, shares: Mapping[int, float], needs: Mapping[int, float]) -> Numbers:
    """A lane for each document in turn: the one that is furthest behind its share of the tokens, until none has a need."""
    if len(shares) == 1:
        ((lane, _),) = shares.items()
        count = len(lengths)
        if needs:
            count = min(count, int(np.searchsorted(np.cumsum(lengths), needs[lane])) + 1)
        return np.full(count, lane, dtype=np.int64)
    given = dict.fromkeys(shares, 0.0)
    lanes = []
    for length in lengths.tolist():
        open_to = [lane for lane in shares if not needs or given[lane] < needs[lane]]
        if not open_to:
            break
        lane = min(open_to, key=lambda lane: given[lane] / shares[lane])
        given[lane] += length
        lanes.append(lane)
    return np.array(lanes, dtype=np.int64)
