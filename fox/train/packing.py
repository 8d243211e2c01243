"""Which pieces of which documents are in each chunk: worked out before training, kept in the run's folder, hashed.

Each source is an endless sequence of documents: all of them in one order, then all of them in another, and so on. A stage takes
documents from where the last one ended, as many as its chunks need, and packs them best-fit-decreasing (arXiv 2404.10830), a
group of documents at a time: groups never reach from one epoch into the next, so no epoch begins before the last has ended.
Documents longer than a chunk are cut at its length, and their rests are packed like short ones; what is shorter stays whole.

The index of a lane is three arrays that are read in place: where each piece begins in its source's shard, how long it is, and
where each bin's pieces end. `manifest.json` says what they were made of, what they hold, and their hashes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fox.artifacts import PARTIAL, disk_failures, folder_made_whole, sha256_of, write_json
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.progress import Meter
from fox.train.best_fit import Numbers, best_fit
from fox.train.curriculum import Chunk, Lane, StageOrder
from fox.train.shuffle import key_of, shuffled, shuffled_all

FORMAT = 1
GROUP_DOCUMENTS = 65_536
"""Documents that are packed together, at most: enough for hardly any room to be left, little enough for any memory."""
GROUP_TOKENS = 1 << 28
_ARRAYS: dict[str, np.dtype[Any]] = {"starts": np.dtype("<u8"), "lengths": np.dtype("<u4"), "ends": np.dtype("<u8")}


@dataclass(frozen=True)
class Limit:
    """How often a source may be seen in all, and the recipe's key for that."""

    key: str
    epochs: float


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
        if _what_it_was_made_of(folder) != made_of:
            with folder_made_whole(folder) as partial:
                _make(partial, orders, shards, limit, made_of, meter or Meter("pack", None, "tokens"), workers)
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
        for name, dtype in _ARRAYS.items():
            path = _array_path(folder, stage, lane, name)
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
            [order.name, [[lane.source, lane.length, _bins_needed(order, lane, shards)] for lane in order.lanes]]
            for order in orders
        ],
    }


def _bins_needed(order: StageOrder, lane: Lane, shards: Mapping[str, Shard]) -> int:
    """As many bins as the stage takes of a lane. Where the mixture follows the loss, up to an epoch's, so that a source that
    is given more has something new to give."""
    chunks = order.chunks_of(lane)
    if order.stage.mix_follows is None:
        return chunks
    of_source = sum(share for other, share in order.shares.items() if other.source == lane.source)
    epoch = len(shards[lane.source].tokens) * order.shares[lane] / of_source / lane.length
    return max(chunks, min(int(epoch), order.num_rows * (order.stage.row_length // lane.length)))


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


def _array_path(folder: Path, stage: str, lane: Lane, array: str) -> Path:
    return folder / "lanes" / stage / f"{lane.source}.{lane.length}.{array}.npy"


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


# Making it


@dataclass
class _Writer:
    """The arrays of one lane, written group by group, and what is told of them."""

    folder: Path
    stage: str
    lane: Lane
    needed: int
    opened: contextlib.ExitStack
    bins: int = 0
    pieces: int = 0
    tokens: int = 0
    cut: int = 0
    whole: int = 0
    left_over: int = 0
    parts: list[list[int]] = field(default_factory=list)
    _files: dict[str, IO[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in _ARRAYS.items():
            path = _array_path(self.folder, self.stage, self.lane, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = self.opened.enter_context(path.open("wb"))
            _write_header(self._files[name], dtype, 0)

    @property
    def tokens_needed(self) -> int:
        return (self.needed - self.bins) * self.lane.length

    def add(self, epoch: int, packed: _Packed) -> None:
        """Append a group's bins, the fullest first, and no more than are needed."""
        keep = min(len(packed.pieces_per_bin), self.needed - self.bins)
        ends = np.cumsum(packed.pieces_per_bin[:keep], dtype=np.int64)
        pieces = int(ends[-1]) if keep else 0
        left_over = np.unique(packed.piece_documents[pieces:])
        used = np.setdiff1d(packed.piece_documents[:pieces], left_over)
        in_pieces = np.bincount(packed.piece_documents)[used] if len(used) else used
        self.cut += int((in_pieces > 1).sum())
        self.whole += int((in_pieces == 1).sum())
        self.left_over += len(left_over)
        lengths = packed.piece_lengths[:pieces]
        for name, values in (
            ("starts", packed.piece_starts[:pieces]),
            ("lengths", lengths),
            ("ends", ends + self.pieces),
        ):
            self._files[name].write(values.astype(_ARRAYS[name]).tobytes())
        if not self.parts or self.parts[-1][0] != epoch:
            self.parts.append([epoch, 0])
        self.parts[-1][1] += keep
        self.bins += keep
        self.pieces += pieces
        self.tokens += int(lengths.sum())

    def close(self) -> dict[str, Any]:
        """What the manifest says of the lane."""
        for name, file in self._files.items():
            file.seek(0)
            _write_header(file, _ARRAYS[name], self.bins if name == "ends" else self.pieces)
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
            "parts": [{"epoch": epoch, "bins": bins} for epoch, bins in self.parts if bins],
            "sha256": {name: sha256_of(_array_path(self.folder, self.stage, self.lane, name)) for name in _ARRAYS},
        }


@dataclass(frozen=True)
class _Packed:
    """A group's bins, the fullest first; its pieces in the bins' order, each with the place of its document in the group."""

    piece_starts: Numbers
    piece_lengths: Numbers
    piece_documents: Numbers
    pieces_per_bin: Numbers


_Task = tuple[Numbers, Numbers, int]
"""Documents to pack: where each begins in the shard, how long it is, and the chunk length."""


@dataclass(frozen=True)
class _Group:
    """Some documents of an epoch, in order, and which lane each is dealt to; `next` is the place in the sequence after them."""

    epoch: int
    next: int
    starts: Numbers
    lengths: Numbers
    lane_of: Numbers

    def task(self, lane: int, length: int) -> _Task:
        mine = self.lane_of == lane
        return self.starts[mine], self.lengths[mine], length

    def dealt(self, lane: int) -> int:
        return int(self.lengths[self.lane_of == lane].sum())


def _make(
    folder: Path,
    orders: Sequence[StageOrder],
    shards: Mapping[str, Shard],
    limit: Limit,
    made_of: dict[str, Any],
    meter: Meter,
    workers: int,
) -> None:
    taken = dict.fromkeys(shards, 0)  # documents of each source's endless sequence
    lanes = []
    with _Pool(workers) as pool, contextlib.ExitStack() as opened:
        for order in orders:
            needed = {lane: _bins_needed(order, lane, shards) for lane in order.lanes}
            writers = {lane: _Writer(folder, order.name, lane, count, opened) for lane, count in needed.items()}
            for source in dict.fromkeys(lane.source for lane in order.lanes):
                mine = [writer for lane, writer in writers.items() if lane.source == source]
                stock = _Stock(source, shards[source], order.seed)
                most = int(limit.epochs * len(shards[source]))
                taken[source] = _fill(mine, stock, taken[source], most, pool, meter)
                if any(writer.needed > writer.bins for writer in mine):
                    raise _seen_too_often(source, orders, shards, limit, order)
            lanes += [writer.close() for writer in writers.values()]
    epochs = {source: round(count / len(shards[source]), 4) for source, count in taken.items() if count}
    manifest = {"made_of": made_of, "epochs": epochs, "lanes": lanes, "sha256_of_lanes": _digest(lanes)}
    write_json(folder / "manifest.json", manifest)


def _fill(writers: Sequence[_Writer], stock: _Stock, taken: int, most: int, pool: _Pool, meter: Meter) -> int:
    """Fill the lanes of one source with documents from its `taken`-th on, but none from its `most`-th on.

    How many had been taken at the end. Groups are packed some at a time, and the outcome is that of one at a time: what is
    packed beyond the group that fills a lane is thrown away, since from there on the others are dealt more.
    """
    rounds = 0
    while taken < most and (hungry := [at for at, writer in enumerate(writers) if writer.tokens_needed]):
        needs = {at: float(writers[at].tokens_needed) for at in hungry}
        shares = {at: float(writers[at].needed * writers[at].lane.length) for at in hungry}
        rounds += 1
        groups = []
        following = taken
        for _ in range(pool.workers if rounds > 2 else 1):
            if following < most:
                groups.append(stock.group(following, most, shares, {}))
                following = groups[-1].next
        tasks = [group.task(at, writers[at].lane.length) for group in groups for at in hungry]
        made = iter(pool.packed(tasks) if len(groups) > 1 else map(_pack, tasks))
        for group in groups:
            needs = {at: float(writers[at].tokens_needed) for at in hungry}
            ends_here = any(group.dealt(at) >= needs[at] for at in hungry)
            if ends_here:
                group = stock.group(taken, most, shares, needs)
                made = map(_pack, [group.task(at, writers[at].lane.length) for at in hungry])
            for at in hungry:
                writers[at].add(group.epoch, next(made))
            taken = group.next
            meter.advance(int(group.lengths.sum()), note=f"{writers[0].stage}, {stock.name}")
            if ends_here or any(not writers[at].tokens_needed for at in hungry):
                break
    return taken


class _Stock:
    """A source's documents as an endless sequence."""

    def __init__(self, name: str, shard: Shard, seed: int) -> None:
        self.name, self._seed, self._ends = name, seed, shard.ends

    def group(self, first: int, most: int, shares: Mapping[int, float], needs: Mapping[int, float]) -> _Group:
        """The documents from the `first`-th on, of one epoch, dealt to lanes by `shares`; with `needs`, until each has so many tokens."""
        epoch, place = divmod(first, len(self._ends))
        end = min(place + GROUP_DOCUMENTS, len(self._ends), place + most - first)
        numbers = shuffled_all(np.arange(place, end), len(self._ends), key_of(self._seed, self.name, str(epoch)))
        starts = np.where(numbers > 0, self._ends[numbers - 1], 0)
        lengths = self._ends[numbers] - starts
        count = max(1, int(np.searchsorted(np.cumsum(lengths), GROUP_TOKENS, side="right")))
        lane_of = _deal(lengths[:count], shares, needs)
        taken = len(lane_of)
        return _Group(epoch, first + taken, starts[:taken], lengths[:taken], lane_of)


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


def _pack(task: _Task) -> _Packed:
    """Documents cut to pieces of a chunk length at most, in bins of it."""
    starts, lengths, capacity = task
    full = lengths // capacity
    rest = lengths % capacity
    with_rest = np.flatnonzero(rest)
    rest_bins, room = best_fit(rest[with_rest], capacity)
    num_full = int(full.sum())
    of_full = np.repeat(np.arange(len(lengths)), full)
    nth = np.arange(num_full) - np.repeat(np.cumsum(full) - full, full)
    by_bin = np.argsort(rest_bins, kind="stable")
    rests = with_rest[by_bin]
    return _Packed(
        np.concatenate([starts[of_full] + nth * capacity, starts[rests] + full[rests] * capacity]),
        np.concatenate([np.full(num_full, capacity, dtype=np.int64), rest[rests]]),
        np.concatenate([of_full, rests]),
        np.concatenate([np.ones(num_full, dtype=np.int64), np.bincount(rest_bins, minlength=len(room))]),
    )


class _Pool:
    """Worker processes, started when they are first needed."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._started: ProcessPoolExecutor | None = None

    def packed(self, tasks: Sequence[_Task]) -> Iterator[_Packed]:
        if self._started is None:
            self._started = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))
        return self._started.map(_pack, tasks)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._started.shutdown()


def _seen_too_often(
    source: str, orders: Sequence[StageOrder], shards: Mapping[str, Shard], limit: Limit, met: StageOrder
) -> UserError:
    tokens = len(shards[source].tokens)
    wanted = sum(
        order.chunks_of(lane) * lane.length for order in orders for lane in order.lanes if lane.source == source
    )
    epochs = -(-wanted // tokens)
    return UserError(
        limit.key,
        limit.epochs,
        problem=f"source {source} has {tokens} tokens, and would be seen about {wanted / tokens:.1f} times: "
        f"stage {met.name} comes to the end of what there is",
        mend=f"Train on fewer tokens of it (-o {met.recipe_key}.tokens, or a smaller weight in {met.recipe_key}.mix), "
        f"add documents, or allow it: -o {limit.key}={epochs}.",
    )


def _write_header(file: IO[bytes], dtype: np.dtype, count: int) -> None:
    """numpy's, which has room for the final count from the start."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
