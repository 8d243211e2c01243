"""The index of one lane, a source at one chunk length in a stage, opened: which pieces are in each of its chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fox.train.best_fit import Numbers
from fox.train.shuffle import key_of, shuffled, shuffled_all


@dataclass(frozen=True)
class Part:
    """A run of bins, and the epoch of their pieces (from 0). Of a bin at an epoch's end, which begins the next, `pieces` says how many
    are of which epoch."""

    epoch: int
    bins: int
    pieces: tuple[tuple[int, int], ...] = ()


def part_of(told: Mapping[str, Any]) -> Part:
    """A part as a manifest tells it."""
    return Part(told["epoch"], told["bins"], tuple((epoch, count) for epoch, count in told.get("pieces", ())))


@dataclass(frozen=True)
class PackedLane:
    """The bins of a stage's lane, in the groups' order, by `parts`."""

    piece_starts: npt.NDArray[np.uint64]
    piece_lengths: npt.NDArray[np.uint32]
    bin_ends: npt.NDArray[np.uint64]
    parts: Sequence[Part]
    key: int

    def __len__(self) -> int:
        """How many chunks there are before the lane begins anew."""
        return len(self.bin_ends)

    def bin_of(self, number: int) -> tuple[int, int, bool]:
        """The bin of the lane's `number`-th chunk, its epoch, and whether the lane had run out and began anew before it.

        An epoch's bins are shuffled; a lane that begins anew has all of its bins in another order.
        """
        turn, place = divmod(number, len(self))
        found = shuffled(place, len(self), key_of(self.key, "again", str(turn))) if turn else place
        first = 0
        for part in self.parts:
            if found < first + part.bins:
                if not turn:
                    found = first + shuffled(place - first, part.bins, key_of(self.key, str(first)))
                return found, part.epoch, bool(turn)
            first += part.bins
        raise AssertionError("the parts are all bins")

    def pieces(self, number: int) -> tuple[Numbers, Numbers]:
        """Of the lane's `number`-th chunk: where each of its pieces begins in the shard, and how many tokens it has."""
        found, _, _ = self.bin_of(number)
        span = slice(int(self.bin_ends[found - 1]) if found else 0, int(self.bin_ends[found]))
        return self.piece_starts[span].astype(np.int64), self.piece_lengths[span].astype(np.int64)

    def times_read(self, chunks: int) -> Numbers:
        """How often the lane's first so many chunks read each bin."""
        turns, more = divmod(chunks, len(self))
        times = np.full(len(self), turns, dtype=np.int64)
        if turns:
            times[shuffled_all(np.arange(more), len(self), key_of(self.key, "again", str(turns)))] += 1
            return times
        first = 0
        for part in self.parts:
            places = np.arange(max(0, min(part.bins, more - first)))
            times[first + shuffled_all(places, part.bins, key_of(self.key, str(first)))] += 1
            first += part.bins
        return times

    def unread(self, chunks: int) -> Numbers:
        """The pieces that the lane's first so many chunks do not have, a row each: epoch, first token, and how many tokens."""
        is_unread = np.repeat(self.times_read(chunks) == 0, self.pieces_per_bin)
        columns = (self._epochs(), self.piece_starts.astype(np.int64), self.piece_lengths.astype(np.int64))
        return np.column_stack([column[is_unread] for column in columns])

    @property
    def pieces_per_bin(self) -> Numbers:
        pieces = self.bin_ends.astype(np.int64)
        pieces[1:] -= pieces[:-1].copy()
        return pieces

    def _epochs(self) -> Numbers:
        """Of each piece."""
        per_bin, first = self.pieces_per_bin, 0
        epochs: list[Numbers] = []
        for part in self.parts:
            in_part = int(per_bin[first : first + part.bins].sum())
            epochs += [
                np.full(count, epoch, dtype=np.int64) for epoch, count in part.pieces or ((part.epoch, in_part),)
            ]
            first += part.bins
        return np.concatenate(epochs)
