"""What a training has read of its sources, counted chunk by chunk in its index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fox.formats.token_shards import Shard
from fox.train.curriculum import MOST_MISSED, Lane, StageOrder
from fox.train.packing import Packing
from fox.train.pieces import NOTHING, Pieces, together
from fox.train.stock import documents_of, first_tokens

_SLICE_TOKENS = 1 << 28


def readings(index: Packing, orders: Sequence[StageOrder]) -> dict[str, Any]:
    """`packing`: how the documents lie in the chunks that were read, lane by lane. `epochs`: how often each source was read, padding
    left out. `seen`: the shares of its tokens that were read never, once, twice and so on.

    `orders` have the mixtures as they went. What was skipped or passed over counts as read.
    """
    facts: list[dict[str, Any]] = []
    read: dict[str, list[Pieces]] = {}
    for told in index.facts:
        lane = Lane(told["source"], told["length"])
        (order,) = (order for order in orders if order.name == told["stage"])
        packed, shard = index.lanes[order.name, lane], index.shards[lane.source]
        times = packed.times_read(order.chunks_of(lane))
        of_piece = np.repeat(times, packed.pieces_per_bin)
        pieces = Pieces(packed.piece_starts.astype(np.int64), packed.piece_lengths.astype(np.int64))
        pieces = Pieces(np.repeat(pieces.starts, of_piece), np.repeat(pieces.lengths, of_piece))
        read.setdefault(lane.source, []).append(pieces)
        if order.stage.mix_follows:  # which had more to choose from
            told = {**told, **_held(order, lane, shard, pieces), "documents_left_over": None}
        facts.append({key: value for key, value in told.items() if key not in ("sha256", "parts")})
    tokens = {source: len(index.shards[source].tokens) for source in read}
    seen = {source: times_seen(together([NOTHING, *pieces]), tokens[source]) for source, pieces in read.items()}
    epochs = {source: sum(each.tokens for each in pieces) / tokens[source] for source, pieces in read.items()}
    return {"packing": facts, "epochs": {source: round(each, 4) for source, each in epochs.items()}, "seen": seen}


def _held(order: StageOrder, lane: Lane, shard: Shard, pieces: Pieces) -> dict[str, Any]:
    """What is told of a lane of which these pieces were read."""
    chunks = order.chunks_of(lane)
    padding = chunks * lane.length - pieces.tokens
    documents = documents_of(shard, pieces)
    is_whole = pieces.lengths == shard.ends[documents] - first_tokens(shard, documents)
    return {
        "bins": chunks,
        "pieces": len(pieces),
        "tokens": pieces.tokens,
        "padding": padding,
        "waste": round(padding / max(1, chunks * lane.length), 6),
        "documents_whole": int(is_whole.sum()),
        "documents_cut": len(np.unique(documents[~is_whole])),
    }


def times_seen(pieces: Pieces, tokens: int) -> list[float]:
    """The shares of a shard's `tokens` that so many of these pieces have: none, one, two and so on."""
    starts, ends = np.sort(pieces.starts), np.sort(pieces.starts + pieces.lengths)
    shares = np.zeros(1)
    for first in range(0, tokens, _SLICE_TOKENS):  # a part at a time, for memory
        end = min(first + _SLICE_TOKENS, tokens)
        (begun, to_begin), (ended, to_end) = (
            (np.searchsorted(places, first, "right"), np.searchsorted(places, end)) for places in (starts, ends)
        )
        places = np.concatenate([starts[begun:to_begin], ends[ended:to_end]])
        order = np.argsort(places, kind="stable")
        steps = np.repeat([1, -1], [to_begin - begun, to_end - ended])[order]
        depths = begun - ended + np.concatenate([[0], np.cumsum(steps)])
        found = np.bincount(depths, weights=np.diff(places[order], prepend=first, append=end))
        shares = np.pad(shares, (0, max(0, len(found) - len(shares))))
        shares[: len(found)] += found
    return [round(share, 4) for share in np.trim_zeros(shares / tokens, "b").tolist()]


def padding_warnings(facts: Sequence[Mapping[str, Any]], orders: Sequence[StageOrder]) -> list[str]:
    """What to say of stages whose chunks have so much padding that the sources' shares of the real tokens are not those of the mixture."""
    lines = []
    for order in orders:
        room: dict[str, float] = {}
        real: dict[str, float] = {}
        for told in facts:
            if told["stage"] == order.name:
                of_lane = order.chunks_of(Lane(told["source"], told["length"])) * told["length"]
                room[told["source"]] = room.get(told["source"], 0.0) + of_lane
                real[told["source"]] = real.get(told["source"], 0.0) + of_lane * (1 - told["waste"])
        shares = {source: (room[source] / sum(room.values()), real[source] / sum(real.values())) for source in room}
        source = max(shares, key=lambda name: abs(shares[name][0] - shares[name][1]), default="")
        if source and abs(shares[source][0] - shares[source][1]) > MOST_MISSED:
            of_room, of_real = shares[source]
            lines.append(
                f"{order.recipe_key}.mix: {source} has {of_room:.1%} of the chunks and {of_real:.1%} of the tokens, since "
                f"{1 - real[source] / room[source]:.1%} of its chunks is padding. Where that matters, change "
                f"{order.recipe_key}.chunk_length.{source} so that its documents fill a chunk, or {order.recipe_key}.mix."
            )
    return lines
