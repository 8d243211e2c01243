"""Documents and parts of such, and how they are put into bins of one chunk length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fox.train.best_fit import Numbers, best_fit, cut_to_fill, fill_whole

MOST_WASTE = 0.009
"""The share of the chunks' room that may stay empty in pre-training before documents are cut to fill it."""


@dataclass(frozen=True)
class Pieces:
    """Documents or parts of such: where each begins in the shard, and how long it is."""

    starts: Numbers
    lengths: Numbers

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: slice | Numbers | npt.NDArray[np.bool_]) -> Pieces:
        return Pieces(self.starts[which], self.lengths[which])

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    def cut_after(self, tokens: int) -> tuple[Pieces, Pieces]:
        """The first `tokens` of them (more than 0), or all where they are fewer, and the others: the piece at the border is cut."""
        ends = np.cumsum(self.lengths)
        at = int(np.searchsorted(ends, tokens))
        if at == len(self):
            return self, NOTHING
        over = int(ends[at]) - tokens
        if not over:
            return self[: at + 1], self[at + 1 :]
        start, length = self.starts[at : at + 1], self.lengths[at : at + 1]
        before, after = Pieces(start, length - over), Pieces(start + length - over, np.full(1, over, dtype=np.int64))
        return together([self[:at], before]), together([after, self[at + 1 :]])


NOTHING = Pieces(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def together(some: Sequence[Pieces]) -> Pieces:
    return Pieces(np.concatenate([each.starts for each in some]), np.concatenate([each.lengths for each in some]))


@dataclass(frozen=True)
class Packed:
    """Bins, the fullest first; the pieces in the bins' order."""

    pieces: Pieces
    pieces_per_bin: Numbers

    def first(self, bins: int) -> tuple[Pieces, Pieces]:
        """The pieces of the first `bins`, and those of the others."""
        pieces = int(self.pieces_per_bin[:bins].sum())
        return self.pieces[:pieces], self.pieces[pieces:]


Task = tuple[Pieces, int, bool]
"""What to pack, the chunk length, and whether pieces may be cut to fill chunks."""


def pack(task: Task) -> Packed:
    """Pieces cut to a chunk length at most, in bins of it."""
    given, capacity, to_fill = task
    full, rests = _cut_to_length(given, capacity)
    bin_of, room = best_fit(rests.lengths, capacity)
    if to_fill:
        of, offsets, lengths, bin_of = cut_to_fill(rests.lengths, bin_of, room, capacity, MOST_WASTE)
        rests = Pieces(rests.starts[of] + offsets, lengths)
    return _in_bins(full, rests, bin_of)


def pack_whole(given: Pieces, capacity: int) -> tuple[Packed, Pieces]:
    """Pieces cut so that every bin of a chunk length is full, and what is left of them: less than a bin."""
    full, rests = _cut_to_length(given, capacity)
    bins = rests.tokens // capacity
    of, offsets, lengths, bin_of = fill_whole(rests.lengths, *best_fit(rests.lengths, capacity), capacity)
    rests = Pieces(rests.starts[of] + offsets, lengths)
    fills = bin_of < bins
    return _in_bins(full, rests[fills], bin_of[fills]), rests[~fills]


def _cut_to_length(given: Pieces, capacity: int) -> tuple[Pieces, Pieces]:
    """All that fills a bin alone, and the rests of these and what is shorter."""
    full = given.lengths // capacity
    rest = given.lengths % capacity
    with_rest = np.flatnonzero(rest)
    rests = Pieces((given.starts + full * capacity)[with_rest], rest[with_rest])
    num_full = int(full.sum())
    of_full = np.repeat(np.arange(len(given)), full)
    nth = np.arange(num_full) - np.repeat(np.cumsum(full) - full, full)
    return Pieces(given.starts[of_full] + nth * capacity, np.full(num_full, capacity, dtype=np.int64)), rests


def _in_bins(full: Pieces, rests: Pieces, bin_of: Numbers) -> Packed:
    return Packed(
        together([full, rests[np.argsort(bin_of, kind="stable")]]),
        np.concatenate([np.ones(len(full), dtype=np.int64), np.bincount(bin_of)]),
    )
