"""Writes the arrays of one lane, a source at one chunk length in a stage, group by group, and counts what it writes.

The last bin of an epoch is seldom full. Where that leaves more than `MOST_WASTE` of the lane's room empty, as with sources of few
chunks an epoch, documents are cut so that all bins but the last are full, and what is in the last waits for the first documents of
the next epoch. Such a bin is a part of its own, between those of its epochs: nothing is read again before the last of the epoch was.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from fox.artifacts import sha256_of
from fox.formats.token_shards import Shard
from fox.train.best_fit import Numbers
from fox.train.curriculum import Lane
from fox.train.pieces import MOST_WASTE, NOTHING, Packed, Pieces, pack, pack_whole, together
from fox.train.stock import OfEpoch, documents_of, first_tokens

ARRAYS: dict[str, np.dtype[Any]] = {"starts": np.dtype("<u8"), "lengths": np.dtype("<u4"), "ends": np.dtype("<u8")}


def array_path(folder: Path, stage: str, lane: Lane, array: str) -> Path:
    return folder / "lanes" / stage / f"{lane.source}.{lane.length}.{array}.npy"


@dataclass
class LaneWriter:
    """The lane's arrays, until it has all the bins that are `needed`."""

    folder: Path
    stage: str
    lane: Lane
    shard: Shard
    needed: int
    may_cut: bool
    opened: contextlib.ExitStack
    bins: int = 0
    pieces: int = 0
    tokens: int = 0
    cut: int = 0
    whole: int = 0
    left_over: int = 0
    parts: list[dict[str, Any]] = field(default_factory=list)
    _held: list[OfEpoch] = field(default_factory=list)
    _files: dict[str, IO[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in ARRAYS.items():
            path = array_path(self.folder, self.stage, self.lane, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = self.opened.enter_context(path.open("wb"))
            _write_header(self._files[name], dtype, 0)

    @property
    def tokens_needed(self) -> int:
        """What the lane takes to be full: 0 only where it is."""
        return (self.needed - self.bins) * self.lane.length - self._tokens_held

    def add(self, epoch: int, pieces: Pieces, packed: Packed) -> Pieces:
        """Append what a group has for the lane, and no more bins than are needed; the pieces of the others are given back.

        `packed` is how the pieces lie where nothing waits for them.
        """
        if not len(pieces):
            return NOTHING
        if self._held:
            head, pieces = pieces.cut_after(self.lane.length - self._tokens_held)
            self._held.append((epoch, head))
            if self._tokens_held < self.lane.length:
                return NOTHING
            self._write_held()
            packed = pack((pieces, self.lane.length, self.may_cut))
        if self.bins == self.needed:
            return self._give_back(pieces)
        rest = NOTHING
        if self.may_cut and self._would_waste(packed):
            packed, rest = pack_whole(pieces, self.lane.length)
        keep = min(len(packed.pieces_per_bin), self.needed - self.bins)
        kept, left = packed.first(keep)
        self._write(kept, packed.pieces_per_bin[:keep])
        self._add_part(epoch, keep)
        if self.bins < self.needed:
            self._held = [(epoch, rest)] if len(rest) else []
            return NOTHING
        return self._give_back(together([left, rest]))

    def end(self) -> None:
        """There is no more: what waited is the last, and leaves room."""
        if self._held:
            self._write_held()

    def close(self) -> dict[str, Any]:
        """What the manifest says of the lane."""
        for name, file in self._files.items():
            file.seek(0)
            _write_header(file, ARRAYS[name], self.bins if name == "ends" else self.pieces)
            file.close()
        room = self.bins * self.lane.length
        return {
            "stage": self.stage,
            "source": self.lane.source,
            "length": self.lane.length,
            "bins": self.bins,
            "pieces": self.pieces,
            "tokens": self.tokens,
            "padding": room - self.tokens,
            "waste": round((room - self.tokens) / room, 6),
            "documents_whole": self.whole,
            "documents_cut": self.cut,
            "documents_left_over": self.left_over,
            "parts": self.parts,
            "sha256": {name: sha256_of(array_path(self.folder, self.stage, self.lane, name)) for name in ARRAYS},
        }

    @property
    def _tokens_held(self) -> int:
        return sum(pieces.tokens for _, pieces in self._held)

    def _would_waste(self, packed: Packed) -> bool:
        """Whether more than `MOST_WASTE` of the lane's room so far would be empty with what is needed of these bins."""
        keep = min(len(packed.pieces_per_bin), self.needed - self.bins)
        room = (self.bins + keep) * self.lane.length
        return room - self.tokens - packed.first(keep)[0].tokens > MOST_WASTE * room

    def _write_held(self) -> None:
        """The bin of what waited, and which of its pieces are of which epoch where there are several."""
        pieces = together([each for _, each in self._held])
        self._write(pieces, np.array([len(pieces)]))
        epochs: dict[int, int] = {}
        for epoch, each in self._held:
            epochs[epoch] = epochs.get(epoch, 0) + len(each)
        if len(epochs) == 1:
            self._add_part(self._held[0][0], 1)
        else:
            several = [[epoch, count] for epoch, count in epochs.items()]
            self.parts.append({"epoch": self._held[0][0], "bins": 1, "pieces": several})
        self._held = []

    def _write(self, pieces: Pieces, pieces_per_bin: Numbers) -> None:
        documents = documents_of(self.shard, pieces)
        is_whole = pieces.lengths == self.shard.ends[documents] - first_tokens(self.shard, documents)
        self.whole += int(is_whole.sum())
        self.cut += len(np.unique(documents[~is_whole]))
        ends = np.cumsum(pieces_per_bin, dtype=np.int64) + self.pieces
        for name, values in (("starts", pieces.starts), ("lengths", pieces.lengths), ("ends", ends)):
            self._files[name].write(values.astype(ARRAYS[name]).tobytes())
        self.bins += len(pieces_per_bin)
        self.pieces += len(pieces)
        self.tokens += pieces.tokens

    def _add_part(self, epoch: int, bins: int) -> None:
        if not bins:
            return
        if not self.parts or self.parts[-1]["epoch"] != epoch or "pieces" in self.parts[-1]:
            self.parts.append({"epoch": epoch, "bins": 0})
        self.parts[-1]["bins"] += bins

    def _give_back(self, pieces: Pieces) -> Pieces:
        self.left_over += len(np.unique(documents_of(self.shard, pieces)))
        return pieces


def _write_header(file: IO[bytes], dtype: np.dtype, count: int) -> None:
    """numpy's, which has room for the final count from the start."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
