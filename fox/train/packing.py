"""Which pieces of which documents are in each chunk: worked out before a stage begins, kept in the run's folder, hashed.

The index of a lane is three arrays that are read in place: where each piece begins in its source's shard, how long it is, and
where each bin's pieces end. `manifest.json` says what they were made of, what they hold, and their hashes. How documents are
packed is for `packer` to say.

All stages up to the first whose mixture follows the loss are packed before training. What such a stage leaves of its sources is
known from the record once it is over: the stages after it, up to the next such one, are packed then, in a folder of their own.
Both are functions of the seed, the shards and the record alone.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fox.artifacts import PARTIAL, disk_failures, folder_made_whole, sha256_of, write_json
from fox.errors import Failure
from fox.formats.token_shards import Shard
from fox.progress import Meter
from fox.train.best_fit import Numbers
from fox.train.curriculum import Chunk, Event, Lane, StageOrder
from fox.train.lane_writer import ARRAYS, array_path
from fox.train.packed_lane import PackedLane, part_of
from fox.train.packer import Limit, check_limit, make_lanes, may_cut, most_chunks, room_of, seen_too_often
from fox.train.shuffle import key_of
from fox.train.stock import Stock, from_rows, joined, to_rows

FORMAT = 3
_SECOND_FORMAT = 2
"""An index of it is read as it is, unless a mixture follows the loss: what such a stage had left was lost then."""


class Packing:
    """The index of a training, opened as far as it is known, and the shards that it points into.

    `facts` say of each lane what it holds; `epochs`, how often each source is seen by the end of the stages that are packed before
    training, as planned. What was read in all, `readings` counts.
    """

    def __init__(
        self, folder: Path, orders: Sequence[StageOrder], shards: Mapping[str, Shard], limit: Limit, workers: int = 1
    ) -> None:
        self.shards = shards
        self.lanes: dict[tuple[str, Lane], PackedLane] = {}
        self.facts: list[dict[str, Any]] = []
        self.epochs: dict[str, float] = {}
        self._folder, self._orders, self._limit, self._workers = folder, orders, limit, workers
        self._legs = _legs(orders)
        self._opened: list[tuple[Path, dict[str, Any]]] = []
        """The folder and the manifest of each leg that is."""

    def pieces(self, chunk: Chunk) -> tuple[Numbers, Numbers]:
        """Where each piece of a chunk begins in its source's shard, and how many tokens it has: the chunk's length at most."""
        return self.lanes[chunk.stage, chunk.lane].pieces(chunk.number)

    def epoch_of(self, chunk: Chunk) -> tuple[int, bool]:
        """The epoch of a chunk's (first) documents (from 0), and whether the stage has had this chunk before."""
        _, epoch, again = self.lanes[chunk.stage, chunk.lane].bin_of(chunk.number)
        return epoch, again

    def has(self, stage: str) -> bool:
        """Whether the documents of a stage are known by now."""
        return any(order.name == stage for leg in self._legs[: len(self._opened)] for order in leg)

    def reach(self, stage: str, went: Mapping[str, StageOrder], meter: Meter | None = None) -> None:
        """Have the documents of a stage, which are packed first where that is not done. Any number of processes may call it: one
        packs while the others wait.

        `went` has the orders of the stages before it, by name, with their mixtures as they went. `meter` counts tokens. Raises
        UserError where a source would be seen more often than the limit, Failure where the index is damaged or an older Fox's.
        """
        while not self.has(stage):
            folder, made_of = self._next(went)
            with _one_at_a_time(folder):
                if self._is_of(folder, made_of):
                    self._check_limit(folder, went)
                else:
                    self._check_format(folder)
                    self._check_limit(None, went)
                    self._make(folder, made_of, went, meter or Meter("pack", None, "tokens"))
            self._open(folder)

    def reach_what_is_there(self, went: Mapping[str, StageOrder]) -> None:
        """Have the documents of all stages that are packed, and pack nothing."""
        while len(self._opened) < len(self._legs):
            folder, made_of = self._next(went)
            if not self._is_of(folder, made_of):
                self._check_format(folder)
                break
            self._open(folder)

    def _next(self, went: Mapping[str, StageOrder]) -> tuple[Path, dict[str, Any]]:
        """Where the next leg's index is, and what it has to be made of."""
        made_of = _made_of(self._legs[len(self._opened)], self.shards)
        if not self._opened:
            return self._folder, made_of
        before = went[self._legs[len(self._opened) - 1][-1].name]
        read = [[lane.source, lane.length, before.chunks_of(lane)] for lane in before.lanes]
        made_of["after"] = {"index": self._opened[-1][1]["sha256_of_lanes"], "read": read}
        return self._folder / f"after-{before.name}", made_of

    def _is_of(self, folder: Path, made_of: dict[str, Any]) -> bool:
        """Whether the next leg is packed in `folder`."""
        good = [made_of]
        if not any(order.stage.mix_follows for order in self._legs[len(self._opened)]):
            good.append({**made_of, "format": _SECOND_FORMAT})
        return _what_it_was_made_of(folder) in good

    def _make(self, folder: Path, made_of: dict[str, Any], went: Mapping[str, StageOrder], meter: Meter) -> None:
        leg = self._legs[len(self._opened)]
        stocks = self._stocks(went)
        with folder_made_whole(folder) as partial:
            lanes, epochs = make_lanes(partial, leg, stocks, self._limit, meter, self._workers)
            manifest = {"made_of": made_of, "epochs": epochs, "lanes": lanes}
            if leg[-1].stage.mix_follows:
                manifest["left"] = {name: _save_left(partial, stock) for name, stock in stocks.items()}
            write_json(partial / "manifest.json", {**manifest, "sha256_of_lanes": _seal(manifest)})

    def _check_limit(self, made: Path | None, went: Mapping[str, StageOrder]) -> None:
        """Raise UserError where a source would be seen too often by the end of the run; `made` is the next leg's index where there is one."""
        if made and not self._opened:  # the limit may be another than it was then
            stocks = {name: Stock(name, shard, self._orders[0].seed) for name, shard in self.shards.items()}
            check_limit(_manifest(made)["epochs"], self._legs[0], stocks, self._limit)
        if len(self._legs) > 1:
            orders = [went.get(order.name, order) for order in self._orders]
            for source in dict.fromkeys(lane.source for order in orders for lane in order.lanes):
                tokens = len(self.shards[source].tokens)
                for stages, met in enumerate(orders, start=1):
                    if room_of(source, orders[:stages]) > self._limit.epochs * tokens:
                        raise seen_too_often(source, orders, tokens, self._limit, met)

    def _check_format(self, folder: Path) -> None:
        """Raise Failure where the first leg was packed by an older Fox that lost what its last stage left."""
        known = _what_it_was_made_of(folder) if not self._opened else None
        is_older = isinstance(known, dict) and known.get("format") == _SECOND_FORMAT
        if is_older and any(order.stage.mix_follows for order in self._orders):
            raise Failure(
                f"{folder}: was packed by an older Fox, which lost what a stage whose mixture follows the loss had not read. "
                "Go on with that Fox, or train again with --redo pretrain or another --out."
            )

    def _stocks(self, went: Mapping[str, StageOrder]) -> dict[str, Stock]:
        """Each source as the stages of the opened legs have left it."""
        seed = self._orders[0].seed
        if not self._opened:
            return {name: Stock(name, shard, seed) for name, shard in self.shards.items()}
        folder, manifest = self._opened[-1]
        before = went[self._legs[len(self._opened) - 1][-1].name]
        stocks = {}
        for name, told in manifest["left"].items():
            path = _left_path(folder, name)
            if not path.is_file() or sha256_of(path) != told["sha256"]:
                raise _damaged(path, self._folder)
            unread = [
                self.lanes[before.name, lane].unread(before.chunks_of(lane))
                for lane in before.lanes
                if lane.source == name
            ]
            rows = np.concatenate([*unread, np.load(path, allow_pickle=False)])
            left = from_rows(joined(rows, self.shards[name]))
            stocks[name] = Stock(name, self.shards[name], seed, told["taken"], left)
        return stocks

    def _open(self, folder: Path) -> None:
        """The next leg's lanes."""
        manifest = _manifest(folder)
        of_order = {order.name: order for order in self._orders}
        for told in manifest["lanes"]:
            lane, stage = Lane(told["source"], told["length"]), told["stage"]
            arrays = {}
            for name, dtype in ARRAYS.items():
                path = array_path(folder, stage, lane, name)
                if not path.is_file() or sha256_of(path) != told["sha256"][name]:
                    raise _damaged(path, self._folder)
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
                assert arrays[name].dtype == dtype
            self.lanes[stage, lane] = PackedLane(
                arrays["starts"],
                arrays["lengths"],
                arrays["ends"],
                [part_of(part) for part in told["parts"]],
                key_of(of_order[stage].seed, stage, lane.source, str(lane.length)),
            )
        self.facts += manifest["lanes"]
        if not self._opened:
            self.epochs = manifest["epochs"]
        self._opened.append((folder, manifest))


def packing(
    folder: Path,
    orders: Sequence[StageOrder],
    shards: Mapping[str, Shard],
    limit: Limit,
    meter: Meter | None = None,
    workers: int = 1,
) -> Packing:
    """The index in `folder`, with the documents of all stages that can be known before training: see `Packing.reach`."""
    index = Packing(folder, orders, shards, limit, workers)
    index.reach(orders[0].name, {}, meter)
    return index


def open_packing(
    folder: Path, orders: Sequence[StageOrder], shards: Mapping[str, Shard], events: Iterable[Event] = ()
) -> Packing:
    """The index in `folder`, of all stages that the run with these events on record has packed. Raises Failure where it is damaged
    or was made of something else."""
    index = Packing(folder, orders, shards, Limit("", 0.0))
    record = list(events)
    index.reach_what_is_there({order.name: order.after(record) for order in orders})
    if not index.lanes:
        raise Failure(f"{folder}: is not of this recipe and data. Train again.")
    return index


def _legs(orders: Sequence[StageOrder]) -> list[list[StageOrder]]:
    """The stages that are packed together: each but the last leg ends with one whose mixture follows the loss."""
    legs: list[list[StageOrder]] = [[]]
    for order in orders:
        if legs[-1] and legs[-1][-1].stage.mix_follows:
            legs.append([])
        legs[-1].append(order)
    return legs


def _made_of(orders: Sequence[StageOrder], shards: Mapping[str, Shard]) -> dict[str, Any]:
    """All that the index of some stages depends on, but for those before. Of a shard that is where its documents end, and not their
    tokens."""
    sources = sorted({lane.source for order in orders for lane in order.lanes})
    return {
        "format": FORMAT,
        "seed": orders[0].seed,
        "documents": {
            source: hashlib.sha256(shards[source].ends.astype("<u8").tobytes()).hexdigest() for source in sources
        },
        "stages": [[order.name, may_cut(order), [_taken(order, lane) for lane in order.lanes]] for order in orders],
    }


def _taken(order: StageOrder, lane: Lane) -> list[Any]:
    """A lane, how many chunks are taken of it, and how many there are to be where its mixture follows the loss."""
    told = [lane.source, lane.length, order.chunks_of(lane)]
    return [*told, most_chunks(order, lane)] if order.stage.mix_follows else told


def _left_path(folder: Path, source: str) -> Path:
    return folder / "left" / f"{source}.npy"


def _save_left(folder: Path, stock: Stock) -> dict[str, Any]:
    """Keep what is left of a source beside the lanes; what the manifest says of it."""
    path = _left_path(folder, stock.name)
    path.parent.mkdir(exist_ok=True)
    np.save(path, to_rows(stock.left), allow_pickle=False)
    return {"taken": stock.taken, "sha256": sha256_of(path)}


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["sha256_of_lanes"] != _seal(manifest):
            raise ValueError("its lanes are not as they were written")
        return manifest
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Failure(
            f"{path}: is damaged ({error}). Remove {folder} and run the same command again: it is made anew."
        ) from None


def _seal(manifest: Mapping[str, Any]) -> str:
    """The hash of what a manifest says of lanes, and of what is left for further stages where that is in it."""
    content = [manifest["lanes"], manifest["left"]] if "left" in manifest else manifest["lanes"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, index: Path) -> Failure:
    return Failure(f"{path}: is damaged. Remove {index} and run the same command again: it is made anew.")


def _what_it_was_made_of(folder: Path) -> Any:
    return _manifest(folder)["made_of"] if (folder / "manifest.json").exists() else None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold `folder`, waiting for whoever has it. The lock ends with the process, and its file is gone when nobody waits."""
    lock = folder.with_name(f"{PARTIAL}{folder.name}.wait")
    with contextlib.ExitStack() as held:
        with disk_failures(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                if _holds(descriptor):
                    break
                os.close(descriptor)  # who held it has removed it: ours would be a lock that nobody else can see
        held.callback(os.close, descriptor)
        held.callback(lock.unlink, missing_ok=True)
        yield


def _holds(descriptor: int) -> bool:
    """Lock a file, once nobody else has it; whether it still has its name then. NFS says ESTALE where another machine has removed it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return os.fstat(descriptor).st_nlink > 0
    except OSError as error:
        if error.errno == errno.ESTALE:
            return False
        raise
