"""Makes the index of packed documents: which documents a stage gets, and how they lie in its chunks.

A stage takes documents of each source's sequence (`stock`) from where the last one ended, as many as its chunks need, and packs
them best-fit-decreasing (arXiv 2404.10830), a group of documents at a time: groups never reach from one epoch into the next, so
no epoch begins before the last has ended. What is left over at a stage's end, in bins that it did not need, is the first that the
next stage gets of that source.

A stage whose mixture follows the loss has more to choose from: of each source as much as that could be given. Which of it was
read is known when the stage is over, so the stages after it are packed then (`packing`), from what it left.

Documents longer than a chunk are cut at its length, and their rests are packed like short ones. What is shorter stays whole in
tuning, where an answer without its question teaches little, however much room is left; in pre-training, some are cut where more than
`MOST_WASTE` of the room would stay empty.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fox.errors import UserError
from fox.progress import Meter
from fox.recipe.schema import Tune
from fox.train.curriculum import Lane, StageOrder
from fox.train.lane_writer import LaneWriter
from fox.train.pieces import Packed, Task, pack
from fox.train.stock import Group, Stock

_EPOCH_DIGITS = 4


@dataclass(frozen=True)
class Limit:
    """How often a source may be seen in all, and the recipe's key for that."""

    key: str
    epochs: float


def make_lanes(
    folder: Path, orders: Sequence[StageOrder], stocks: Mapping[str, Stock], limit: Limit, meter: Meter, workers: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Write the arrays of all lanes of some stages, of which the last alone may follow the loss. What is to be told of each lane,
    and how often each source is seen by their end as planned. `stocks` have then what these stages take, and all that one which
    follows the loss could.

    Raises UserError where a source would be seen more often than `limit`.
    """
    lanes = []
    epochs = {source: stock.epochs for source, stock in stocks.items()}
    with _Pool(workers) as pool, contextlib.ExitStack() as opened:
        for order in orders:
            writers = [
                LaneWriter(
                    folder,
                    order.name,
                    lane,
                    stocks[lane.source].shard,
                    order.chunks_of(lane),
                    may_cut(order),
                    opened,
                )
                for lane in order.lanes
            ]
            for source in dict.fromkeys(lane.source for lane in order.lanes):
                stock, mine = stocks[source], [writer for writer in writers if writer.lane.source == source]
                most = stock.documents_within(limit.epochs)
                _fill(mine, stock, most, pool, meter)
                if any(writer.tokens_needed for writer in mine):
                    raise seen_too_often(source, orders, len(stock.shard.tokens), limit, order)
                epochs[source] = stock.epochs
                if order.stage.mix_follows:
                    for writer in mine:
                        writer.needed = most_chunks(order, writer.lane)
                    # Not by the limit, which may change: the mixture is kept within that when it follows the loss.
                    _fill(mine, stock, sys.maxsize, pool, meter)
            lanes += [writer.close() for writer in writers]
    return lanes, {source: round(seen, _EPOCH_DIGITS) for source, seen in epochs.items() if seen}


def check_limit(
    epochs: Mapping[str, float], orders: Sequence[StageOrder], stocks: Mapping[str, Stock], limit: Limit
) -> None:
    """Raise UserError where a source is seen more often than `limit` by the end of `orders`; `epochs` says how often each is, as
    `make_lanes` gave it."""
    for source, seen in epochs.items():
        shard = stocks[source].shard
        most_documents = max(stocks[source].documents_within(limit.epochs), limit.epochs * len(shard))
        if seen > round(most_documents / len(shard), _EPOCH_DIGITS):
            most = limit.epochs * len(shard.tokens)
            users = [order for order in orders if any(lane.source == source for lane in order.lanes)]
            met = next((order for at, order in enumerate(users) if room_of(source, users[: at + 1]) > most), users[-1])
            raise seen_too_often(source, orders, len(shard.tokens), limit, met)


def most_chunks(order: StageOrder, lane: Lane) -> int:
    """As many chunks as a stage whose mixture follows the loss could take of a lane: those of all its rows, if its source got them."""
    of_source = [share for other, share in order.shares.items() if other.source == lane.source]
    rows = order.num_rows
    if len(of_source) > 1:  # each change of the mixture rounds, up by less than a row
        rows = min(rows, math.ceil(rows * order.shares[lane] / sum(of_source)) + 1)
    return max(order.chunks_of(lane), rows * (order.stage.row_length // lane.length))


def may_cut(order: StageOrder) -> bool:
    """Whether documents that a chunk could hold may be cut, to leave little room."""
    return not isinstance(order.stage, Tune)


def seen_too_often(source: str, orders: Sequence[StageOrder], tokens: int, limit: Limit, met: StageOrder) -> UserError:
    """`tokens` has the source, and stage `met` has no more of it."""
    wanted = room_of(source, orders)
    epochs = -(-wanted // tokens)
    return UserError(
        limit.key,
        limit.epochs,
        problem=f"source {source} has {tokens} tokens, and would be seen about {wanted / tokens:.1f} times: "
        f"stage {met.name} comes to the end of what there is",
        mend=f"Train on fewer tokens of it (-o {met.recipe_key}.tokens, or a smaller weight in {met.recipe_key}.mix), "
        f"add documents, or allow it: -o {limit.key}={epochs}.",
    )


def room_of(source: str, orders: Sequence[StageOrder]) -> int:
    """The tokens of all chunks that stages take of a source, as planned."""
    return sum(order.chunks_of(lane) * lane.length for order in orders for lane in order.lanes if lane.source == source)


def _fill(writers: Sequence[LaneWriter], stock: Stock, most: int, pool: _Pool, meter: Meter) -> None:
    """Fill the lanes of one source with what it has next, but with no document from its `most`-th on.

    Groups are packed some at a time, and the outcome is that of one at a time: what is packed beyond the group that fills a lane
    is thrown away, since from there on the others are dealt more.
    """
    rounds = 0
    while stock.has(most) and (hungry := [at for at, writer in enumerate(writers) if writer.tokens_needed]):
        shares = {at: float(writers[at].needed * writers[at].lane.length) for at in hungry}
        rounds += 1
        groups = [stock.group(stock.taken, most, stock.left, shares, {})]
        ahead = pool.workers if rounds > 2 and len(stock.left) < 2 and not len(groups[0].back) else 1
        while len(groups) < ahead and groups[-1].next < most:
            groups.append(stock.group(groups[-1].next, most, [], shares, {}))
        tasks = _tasks(groups, hungry, writers)
        made = iter(pool.packed(tasks) if len(groups) > 1 else map(pack, tasks))
        for group in groups:
            needs = {at: float(writers[at].tokens_needed) for at in hungry}
            ends_here = any(group.dealt(at) >= needs[at] for at in hungry)
            if ends_here:
                group = stock.group(stock.taken, most, stock.left, shares, needs)
                made = map(pack, _tasks([group], hungry, writers))
            stock.take(group, [writers[at].add(group.epoch, group.of(at), next(made)) for at in hungry])
            meter.advance(group.pieces.tokens, note=f"{writers[0].stage}, {stock.name}")
            if ends_here or any(not writers[at].tokens_needed for at in hungry):
                break
    for writer in writers:
        writer.end()


def _tasks(groups: Sequence[Group], lanes: Sequence[int], writers: Sequence[LaneWriter]) -> list[Task]:
    return [(group.of(at), writers[at].lane.length, writers[at].may_cut) for group in groups for at in lanes]


class _Pool:
    """Worker processes, started when they are first needed."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._started: ProcessPoolExecutor | None = None

    def packed(self, tasks: Sequence[Task]) -> Iterator[Packed]:
        if self._started is None:
            self._started = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))
        return self._started.map(pack, tasks)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._started.shutdown()
