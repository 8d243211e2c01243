"""Makes the index of packed documents: which documents a stage gets, and how they lie in its chunks.

Each source is an endless sequence of documents: all of them in one order, then all of them in another, and so on. A stage takes
documents from where the last one ended, as many as its chunks need, and packs them best-fit-decreasing (arXiv 2404.10830), a
group of documents at a time: groups never reach from one epoch into the next, so no epoch begins before the last has ended. What
is left over at a stage's end, in bins that it did not need, is the first that the next stage gets of that source.

Documents longer than a chunk are cut at its length, and their rests are packed like short ones. What is shorter stays whole in
tuning, where an answer without its question teaches little, however much room is left; in pre-training, some are cut where more than
`MOST_WASTE` of the room would stay empty.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import numpy as np

from fox.artifacts import sha256_of
from fox.errors import UserError
from fox.formats.token_shards import Shard
from fox.progress import Meter
from fox.recipe.schema import Tune
from fox.train.best_fit import Numbers, best_fit, cut_to_fill
from fox.train.curriculum import Lane, StageOrder
from fox.train.shuffle import key_of, shuffled_all

GROUP_DOCUMENTS = 65_536
"""Documents that are packed together, at most: enough for hardly any room to be left, little enough for any memory."""
GROUP_TOKENS = 1 << 28
MOST_WASTE = 0.009
"""The share of the chunks' room that may stay empty in pre-training before documents are cut to fill it."""
_EPOCH_DIGITS = 4
ARRAYS: dict[str, np.dtype[Any]] = {"starts": np.dtype("<u8"), "lengths": np.dtype("<u4"), "ends": np.dtype("<u8")}


@dataclass(frozen=True)
class Limit:
    """How often a source may be seen in all, and the recipe's key for that."""

    key: str
    epochs: float


def make_lanes(
    folder: Path, orders: Sequence[StageOrder], shards: Mapping[str, Shard], limit: Limit, meter: Meter, workers: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Write the arrays of all stages' lanes. What is to be told of each lane, and how often each source is seen in all.

    Raises UserError where a source would be seen more often than `limit`.
    """
    stocks = {name: _Stock(name, shard, orders[0].seed) for name, shard in shards.items()}
    lanes = []
    with _Pool(workers) as pool, contextlib.ExitStack() as opened:
        for order in orders:
            writers = [
                _Writer(folder, order, lane, bins_needed(order, lane, shards), shards[lane.source], opened)
                for lane in order.lanes
            ]
            for source in dict.fromkeys(lane.source for lane in order.lanes):
                stock, mine = stocks[source], [writer for writer in writers if writer.lane.source == source]
                most = int(limit.epochs * len(shards[source])) + stock.spare
                wanted = sum(order.chunks_of(writer.lane) * writer.lane.length for writer in mine)
                needed = sum(writer.tokens_needed for writer in mine)
                before = stock.taken
                _fill(mine, stock, most + len(shards[source]) * (needed > wanted), pool, meter)
                stock.spare += int((stock.taken - before) * (1 - wanted / needed))
                if any(writer.tokens_needed for writer in mine) or stock.epochs > limit.epochs:
                    raise _seen_too_often(source, orders, shards, limit, order)
            lanes += [writer.close() for writer in writers]
    return lanes, {source: round(stock.epochs, _EPOCH_DIGITS) for source, stock in stocks.items() if stock.taken}


def check_limit(
    epochs: Mapping[str, float], orders: Sequence[StageOrder], shards: Mapping[str, Shard], limit: Limit
) -> None:
    """Raise UserError where a source is seen more often than `limit`; `epochs` says how often each is, as `make_lanes` gave it."""
    for source, seen in epochs.items():
        if seen > round(limit.epochs, _EPOCH_DIGITS):
            most = limit.epochs * len(shards[source].tokens)
            users = [order for order in orders if any(lane.source == source for lane in order.lanes)]
            ends = accumulate(_tokens_of(source, [order]) for order in users)
            met = next((order for order, end in zip(users, ends, strict=True) if end > most), users[-1])
            raise _seen_too_often(source, orders, shards, limit, met)


def bins_needed(order: StageOrder, lane: Lane, shards: Mapping[str, Shard]) -> int:
    """As many bins as the stage takes of a lane. Where the mixture follows the loss, up to an epoch's, so that a source that
    is given more has something new to give: these do not count as seen."""
    chunks = order.chunks_of(lane)
    if order.stage.mix_follows is None:
        return chunks
    of_source = sum(share for other, share in order.shares.items() if other.source == lane.source)
    epoch = len(shards[lane.source].tokens) * order.shares[lane] / of_source / lane.length
    return max(chunks, min(int(epoch), order.num_rows * (order.stage.row_length // lane.length)))


def may_cut(order: StageOrder) -> bool:
    """Whether documents that a chunk could hold may be cut, to leave little room."""
    return not isinstance(order.stage, Tune)


def array_path(folder: Path, stage: str, lane: Lane, array: str) -> Path:
    return folder / "lanes" / stage / f"{lane.source}.{lane.length}.{array}.npy"


@dataclass(frozen=True)
class _Pieces:
    """Documents or parts of such: where each begins in the shard, and how long it is."""

    starts: Numbers
    lengths: Numbers

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which: slice | Numbers) -> _Pieces:
        return _Pieces(self.starts[which], self.lengths[which])


def _together(*some: _Pieces) -> _Pieces:
    return _Pieces(np.concatenate([each.starts for each in some]), np.concatenate([each.lengths for each in some]))


_NONE = _Pieces(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class _Packed:
    """A group's bins, the fullest first; its pieces in the bins' order."""

    pieces: _Pieces
    pieces_per_bin: Numbers


@dataclass
class _Writer:
    """The arrays of one lane, written group by group, and what is told of them."""

    folder: Path
    order: StageOrder
    lane: Lane
    needed: int
    shard: Shard
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
        for name, dtype in ARRAYS.items():
            path = array_path(self.folder, self.order.name, self.lane, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = self.opened.enter_context(path.open("wb"))
            _write_header(self._files[name], dtype, 0)

    @property
    def tokens_needed(self) -> int:
        return (self.needed - self.bins) * self.lane.length

    def add(self, epoch: int, packed: _Packed) -> _Pieces:
        """Append a group's bins, the fullest first, and no more than are needed; the pieces of the others are given back."""
        keep = min(len(packed.pieces_per_bin), self.needed - self.bins)
        ends = np.cumsum(packed.pieces_per_bin[:keep], dtype=np.int64)
        pieces = int(ends[-1]) if keep else 0
        kept, left = packed.pieces[:pieces], packed.pieces[pieces:]
        documents = self._documents(kept)
        is_whole = kept.lengths == self.shard.ends[documents] - _starts(self.shard, documents)
        self.whole += int(is_whole.sum())
        self.cut += len(np.unique(documents[~is_whole]))
        self.left_over += len(np.unique(self._documents(left)))
        for name, values in (("starts", kept.starts), ("lengths", kept.lengths), ("ends", ends + self.pieces)):
            self._files[name].write(values.astype(ARRAYS[name]).tobytes())
        if not self.parts or self.parts[-1][0] != epoch:
            self.parts.append([epoch, 0])
        self.parts[-1][1] += keep
        self.bins += keep
        self.pieces += pieces
        self.tokens += int(kept.lengths.sum())
        return left

    def _documents(self, pieces: _Pieces) -> Numbers:
        return np.searchsorted(self.shard.ends, pieces.starts, side="right")

    def close(self) -> dict[str, Any]:
        """What the manifest says of the lane."""
        for name, file in self._files.items():
            file.seek(0)
            _write_header(file, ARRAYS[name], self.bins if name == "ends" else self.pieces)
            file.close()
        room = self.bins * self.lane.length
        return {
            "stage": self.order.name,
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
            "sha256": {name: sha256_of(array_path(self.folder, self.order.name, self.lane, name)) for name in ARRAYS},
        }


@dataclass(frozen=True)
class _Group:
    """Pieces of an epoch in order, and which lane each is dealt to. `next` is the place in the sequence after them; `back` were not dealt."""

    epoch: int
    next: int
    pieces: _Pieces
    lane_of: Numbers
    back: _Pieces

    def tasks(self, lanes: Sequence[int], writers: Sequence[_Writer]) -> list[_Task]:
        return [(self.pieces[self.lane_of == at], writers[at].lane.length, may_cut(writers[at].order)) for at in lanes]

    def dealt(self, lane: int) -> int:
        return int(self.pieces.lengths[self.lane_of == lane].sum())


_Task = tuple[_Pieces, int, bool]
"""What to pack, the chunk length, and whether pieces may be cut to fill chunks."""


def _fill(writers: Sequence[_Writer], stock: _Stock, most: int, pool: _Pool, meter: Meter) -> None:
    """Fill the lanes of one source with what it has next, but with no document from its `most`-th on.

    Groups are packed some at a time, and the outcome is that of one at a time: what is packed beyond the group that fills a lane
    is thrown away, since from there on the others are dealt more.
    """
    rounds = 0
    while stock.has(most) and (hungry := [at for at, writer in enumerate(writers) if writer.tokens_needed]):
        needs = {at: float(writers[at].tokens_needed) for at in hungry}
        shares = {at: float(writers[at].needed * writers[at].lane.length) for at in hungry}
        rounds += 1
        groups = [stock.group(stock.taken, most, stock.carried, shares, {})]
        ahead = pool.workers if rounds > 2 and not len(groups[0].back) else 1
        while len(groups) < ahead and groups[-1].next < most:
            groups.append(stock.group(groups[-1].next, most, _NONE, shares, {}))
        tasks = [task for group in groups for task in group.tasks(hungry, writers)]
        made = iter(pool.packed(tasks) if len(groups) > 1 else map(_pack, tasks))
        for group in groups:
            needs = {at: float(writers[at].tokens_needed) for at in hungry}
            ends_here = any(group.dealt(at) >= needs[at] for at in hungry)
            if ends_here:
                group = stock.group(stock.taken, most, stock.carried, shares, needs)
                made = map(_pack, group.tasks(hungry, writers))
            stock.taken = group.next
            stock.carried = _together(group.back, *(writers[at].add(group.epoch, next(made)) for at in hungry))
            stock.carried_epoch = group.epoch
            meter.advance(int(group.pieces.lengths.sum()), note=f"{writers[0].order.name}, {stock.name}")
            if ends_here or any(not writers[at].tokens_needed for at in hungry):
                break


class _Stock:
    """A source's documents as an endless sequence: how many of it are `taken`, and what of these no chunk has got yet.

    `spare` of them were packed only to choose from.
    """

    def __init__(self, name: str, shard: Shard, seed: int) -> None:
        self.name, self._seed, self._shard = name, seed, shard
        self.taken = self.spare = self.carried_epoch = 0
        self.carried = _NONE

    @property
    def epochs(self) -> float:
        return (self.taken - self.spare) / len(self._shard)

    def has(self, most: int) -> bool:
        return self.taken < most or len(self.carried) > 0

    def group(
        self, first: int, most: int, carried: _Pieces, shares: Mapping[int, float], needs: Mapping[int, float]
    ) -> _Group:
        """What was `carried` and the documents from the `first`-th on, of one epoch, dealt to lanes by `shares`; with `needs`,
        until each has so many tokens."""
        count = len(self._shard)
        epoch, place = divmod(first, count)
        end = min(place + GROUP_DOCUMENTS, count, place + most - first)
        if len(carried) and (
            first >= most or epoch != self.carried_epoch
        ):  # the last of an epoch, which comes before the next
            epoch, end = self.carried_epoch, place
        documents = shuffled_all(np.arange(place, max(place, end)), count, key_of(self._seed, self.name, str(epoch)))
        starts = _starts(self._shard, documents)
        pieces = _together(carried, _Pieces(starts, self._shard.ends[documents] - starts))
        few = max(1, int(np.searchsorted(np.cumsum(pieces.lengths), GROUP_TOKENS, side="right")))
        lane_of = _deal(pieces.lengths[:few], shares, needs)
        dealt = len(lane_of)
        return _Group(epoch, first + max(0, dealt - len(carried)), pieces[:dealt], lane_of, carried[dealt:])


def _starts(shard: Shard, documents: Numbers) -> Numbers:
    """Where each of some documents begins."""
    return np.where(documents > 0, shard.ends[documents - 1], 0)


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
    """Pieces cut to a chunk length at most, in bins of it."""
    given, capacity, to_fill = task
    full = given.lengths // capacity
    rest = given.lengths % capacity
    with_rest = np.flatnonzero(rest)
    rests = _Pieces((given.starts + full * capacity)[with_rest], rest[with_rest])
    bin_of, room = best_fit(rests.lengths, capacity)
    if to_fill:
        of, offsets, lengths, bin_of = cut_to_fill(rests.lengths, bin_of, room, capacity, MOST_WASTE)
        rests = _Pieces(rests.starts[of] + offsets, lengths)
    num_full = int(full.sum())
    of_full = np.repeat(np.arange(len(given)), full)
    nth = np.arange(num_full) - np.repeat(np.cumsum(full) - full, full)
    fulls = _Pieces(given.starts[of_full] + nth * capacity, np.full(num_full, capacity, dtype=np.int64))
    return _Packed(
        _together(fulls, rests[np.argsort(bin_of, kind="stable")]),
        np.concatenate([np.ones(num_full, dtype=np.int64), np.bincount(bin_of)]),
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
    wanted = _tokens_of(source, orders)
    epochs = -(-wanted // tokens)
    return UserError(
        limit.key,
        limit.epochs,
        problem=f"source {source} has {tokens} tokens, and would be seen about {wanted / tokens:.1f} times: "
        f"stage {met.name} comes to the end of what there is",
        mend=f"Train on fewer tokens of it (-o {met.recipe_key}.tokens, or a smaller weight in {met.recipe_key}.mix), "
        f"add documents, or allow it: -o {limit.key}={epochs}.",
    )


def _tokens_of(source: str, orders: Sequence[StageOrder]) -> int:
    """How many tokens stages take of a source, padding included."""
    return sum(order.chunks_of(lane) * lane.length for order in orders for lane in order.lanes if lane.source == source)


def _write_header(file: IO[bytes], dtype: np.dtype, count: int) -> None:
    """numpy's, which has room for the final count from the start."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
