"""Which pieces of which documents are in each chunk: worked out before training, kept in the run's folder, hashed.

The index of a lane is three arrays that are read in place: where each piece begins in its source's shard, how long it is, and
where each bin's pieces end. `manifest.json` says what they were made of, what they hold, and their hashes. How documents are
packed is for `packer` to say.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fox.artifacts import PARTIAL, disk_failures, folder_made_whole, sha256_of, write_json
from fox.errors import Failure
from fox.formats.token_shards import Shard
from fox.progress import Meter
from fox.train.best_fit import Numbers
from fox.train.curriculum import Chunk, Lane, StageOrder
from fox.train.packer import ARRAYS, Limit, array_path, bins_needed, check_limit, make_lanes, may_cut
from fox.train.shuffle import key_of, shuffled

FORMAT = 2


@dataclass(frozen=True)
class PackedLane:
    """The bins of a stage's lane, in the groups' order. `parts` has the epoch of each run of bins, and how many these are."""

    piece_starts: npt.NDArray[np.uint64]
    piece_lengths: npt.NDArray[np.uint32]
    bin_ends: npt.NDArray[np.uint64]
    parts: Sequence[tuple[int, int]]
    key: int

    def bin_of(self, number: int) -> tuple[int, int, bool]:
        """The bin of the lane's `number`-th chunk, its epoch, and whether the lane had run out and began anew before it.

        An epoch's bins are shuffled; a lane that begins anew has all of its bins in another order.
        """
        num_bins = len(self.bin_ends)
        turn, place = divmod(number, num_bins)
        found = shuffled(place, num_bins, key_of(self.key, "again", str(turn))) if turn else place
        first = 0
        for epoch, bins in self.parts:
            if found < first + bins:
                if not turn:
                    found = first + shuffled(place - first, bins, key_of(self.key, str(first)))
                return found, epoch, bool(turn)
            first += bins
        raise AssertionError("the parts are all bins")

    def pieces(self, number: int) -> tuple[Numbers, Numbers]:
        """Of the lane's `number`-th chunk: where each of its pieces begins in the shard, and how many tokens it has."""
        found, _, _ = self.bin_of(number)
        span = slice(int(self.bin_ends[found - 1]) if found else 0, int(self.bin_ends[found]))
        return self.piece_starts[span].astype(np.int64), self.piece_lengths[span].astype(np.int64)


@dataclass(frozen=True)
class Packing:
    """The index of a training, opened, and the shards that it points into.

    `facts` say of each lane what it holds; `epochs`, how often each source is seen in all.
    """

    lanes: Mapping[tuple[str, Lane], PackedLane]
    shards: Mapping[str, Shard]
    facts: Sequence[Mapping[str, Any]]
    epochs: Mapping[str, float]

    def pieces(self, chunk: Chunk) -> tuple[Numbers, Numbers]:
        """Where each piece of a chunk begins in its source's shard, and how many tokens it has: the chunk's length at most."""
        return self.lanes[chunk.stage, chunk.lane].pieces(chunk.number)

    def epoch_of(self, chunk: Chunk) -> tuple[int, bool]:
        """The epoch of a chunk's documents (from 0), and whether the stage has had this chunk before."""
        _, epoch, again = self.lanes[chunk.stage, chunk.lane].bin_of(chunk.number)
        return epoch, again


def packing(
    folder: Path,
    orders: Sequence[StageOrder],
    shards: Mapping[str, Shard],
    limit: Limit,
    meter: Meter | None = None,
    workers: int = 1,
) -> Packing:
    """The index in `folder`, made first where there is none of these orders and shards. Any number of processes may call it:
    one makes it while the others wait.

    `meter` counts tokens. Raises UserError where a source would be seen more often than `limit`, Failure where the index is
    damaged.
    """
    made_of = _made_of(orders, shards)
    with _one_at_a_time(folder):
        if _what_it_was_made_of(folder) == made_of:
            check_limit(_manifest(folder)["epochs"], orders, shards, limit)  # which may be another than it was then
        else:
            with folder_made_whole(folder) as partial:
                lanes, epochs = make_lanes(
                    partial, orders, shards, limit, meter or Meter("pack", None, "tokens"), workers
                )
                manifest = {"made_of": made_of, "epochs": epochs, "lanes": lanes, "sha256_of_lanes": _digest(lanes)}
                write_json(partial / "manifest.json", manifest)
    return _open(folder, orders, shards)


def open_packing(folder: Path, orders: Sequence[StageOrder], shards: Mapping[str, Shard]) -> Packing:
    """The index in `folder`. Raises Failure where it is damaged or was made of something else."""
    if _what_it_was_made_of(folder) != _made_of(orders, shards):
        raise Failure(f"{folder}: is not of this recipe and data. Train again.")
    return _open(folder, orders, shards)


def _open(folder: Path, orders: Sequence[StageOrder], shards: Mapping[str, Shard]) -> Packing:
    manifest = _manifest(folder)
    lanes = {}
    of_order = {order.name: order for order in orders}
    for told in manifest["lanes"]:
        lane, stage = Lane(told["source"], told["length"]), told["stage"]
        arrays = {}
        for name, dtype in ARRAYS.items():
            path = array_path(folder, stage, lane, name)
            if not path.is_file() or sha256_of(path) != told["sha256"][name]:
                raise Failure(f"{path}: is damaged. Remove {folder} and run the same command again: it is made anew.")
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            assert arrays[name].dtype == dtype
        lanes[stage, lane] = PackedLane(
            arrays["starts"],
            arrays["lengths"],
            arrays["ends"],
            [(part["epoch"], part["bins"]) for part in told["parts"]],
            key_of(of_order[stage].seed, stage, lane.source, str(lane.length)),
        )
    return Packing(lanes, shards, manifest["lanes"], manifest["epochs"])


def _made_of(orders: Sequence[StageOrder], shards: Mapping[str, Shard]) -> dict[str, Any]:
    """All that the index depends on. Of a shard that is where its documents end, and not their tokens."""
    sources = sorted({lane.source for order in orders for lane in order.lanes})
    return {
        "format": FORMAT,
        "seed": orders[0].seed,
        "documents": {
            source: hashlib.sha256(shards[source].ends.astype("<u8").tobytes()).hexdigest() for source in sources
        },
        "stages": [
            [
                order.name,
                may_cut(order),
                [[lane.source, lane.length, bins_needed(order, lane, shards)] for lane in order.lanes],
            ]
            for order in orders
        ],
    }


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["sha256_of_lanes"] != _digest(manifest["lanes"]):
            raise ValueError("its lanes are not as they were written")
        return manifest
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Failure(
            f"{path}: is damaged ({error}). Remove {folder} and run the same command again: it is made anew."
        ) from None


def _what_it_was_made_of(folder: Path) -> Any:
    return _manifest(folder)["made_of"] if (folder / "manifest.json").exists() else None


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold `folder`, waiting for whoever has it. The lock ends with the process, and its file is gone when nobody waits."""
    lock = folder.with_name(f"{PARTIAL}{folder.name}.wait")
    with contextlib.ExitStack() as held:
        with disk_failures(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if os.fstat(descriptor).st_nlink:
                    break
                os.close(descriptor)  # who held it has removed it: ours would be a lock that nobody else can see
        held.callback(os.close, descriptor)
        held.callback(lock.unlink, missing_ok=True)
        yield
