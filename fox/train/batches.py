"""From windows of a stream to what a forward pass takes: tokens, targets and the documents' borders.

B rows, L tokens a row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from fox.formats.token_shards import Shard
from fox.model.loss import IGNORED
from fox.train.curriculum import Window, key_of, random_numbers


@dataclass(frozen=True)
class Batch:
    """One forward pass. `segment_BL` numbers the documents and chunks of a row, which must not see each other."""

    token_BL: Tensor
    target_BL: Tensor
    segment_BL: Tensor

    @property
    def num_targets(self) -> int:
        """How many tokens are learnt from."""
        return int((self.target_BL != IGNORED).sum())


class Stream:
    """A source's documents, one after the other for ever, in a new order each epoch."""

    def __init__(self, name: str, shard: Shard, seed: int) -> None:
        self.name, self.shard, self.seed = name, shard, seed
        self.epoch_tokens = len(shard.tokens)
        self._order_of = lru_cache(maxsize=2)(self._order)

    def read(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`length` tokens from `start` on: their ids, the number of the document each is of (rising), and whether it is learnt from."""
        ids = np.empty(length, dtype=np.int64)
        numbers = np.empty(length, dtype=np.int64)
        learnt = np.ones(length, dtype=np.bool_)
        done = 0
        while done < length:
            epoch, place = divmod(start + done, self.epoch_tokens)
            documents, ends = self._order_of(epoch)
            at = int(np.searchsorted(ends, place, side="right"))
            _, last = self.shard.span(int(documents[at]))
            begin = last - (int(ends[at]) - place)
            count = min(last - begin, length - done)
            part = slice(done, done + count)
            ids[part] = self.shard.tokens[begin : begin + count]
            numbers[part] = epoch * len(self.shard) + at
            if self.shard.is_learnt is not None:
                learnt[part] = self.shard.is_learnt[begin : begin + count]
            done += count
        return ids, numbers, learnt

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of an epoch in order, and where each ends in it."""
        documents = random_numbers(key_of(self.seed, self.name, str(epoch)), len(self.shard)).argsort(kind="stable")
        lengths = np.diff(self.shard.ends, prepend=0)
        return documents, np.cumsum(lengths[documents])


def make_batch(rows: Sequence[Sequence[Window]], streams: Mapping[str, Stream], learn_marked_only: bool) -> Batch:
    """Rows of windows as tensors. A target is the next token of the same document, or IGNORED; no token is padding.

    With `learn_marked_only`, targets are those that the shard marks (the assistant's), as in tuning.
    """
    row_length = sum(window.length for window in rows[0])
    tokens = np.empty((len(rows), row_length), dtype=np.int64)
    targets = np.empty_like(tokens)
    segments = np.empty_like(tokens)
    for row, windows in enumerate(rows):
        place = segment = 0
        for window in windows:
            ids, numbers, learnt = streams[window.source].read(window.start, window.length + 1)
            part = slice(place, place + window.length)
            is_target = numbers[1:] == numbers[:-1]
            if learn_marked_only:
                is_target &= learnt[1:]
            tokens[row, part] = ids[:-1]
            targets[row, part] = np.where(is_target, ids[1:], IGNORED)
            segments[row, part] = segment + numbers[:-1] - numbers[0]
            place += window.length
            segment = int(segments[row, place - 1]) + 1
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(segments))
