"""From chunks to what a forward pass takes: tokens, targets and the documents' borders.

B rows, L tokens a row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fox.model.loss import IGNORED
from fox.train.curriculum import Row
from fox.train.packing import Packing

_PADDING = 0  # any id: no token sees it, and nothing is learnt from it


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


def make_batch(rows: Sequence[Row], packing: Packing, learn_marked_only: bool) -> Batch:
    """Rows of chunks as tensors. A target is the next token of the same document, or IGNORED.

    That holds at a cut, too: the target of a piece's last token is the first of the next piece. What room is left in a chunk
    is padded, in a segment of its own, with IGNORED targets. With `learn_marked_only`, targets are those that the shard marks
    (the assistant's), as in tuning.
    """
    row_length = sum(chunk.lane.length for chunk in rows[0])
    tokens = np.full((len(rows), row_length), _PADDING, dtype=np.int64)
    targets = np.full_like(tokens, IGNORED)
    segments = np.empty_like(tokens)
    for row, chunks in enumerate(rows):
        place = segment = 0
        for chunk in chunks:
            shard = packing.shards[chunk.lane.source]
            starts, lengths = packing.pieces(chunk)
            ends = starts + lengths
            document_ends = shard.ends[np.searchsorted(shard.ends, starts, side="right")]
            chunk_end = place + chunk.lane.length
            for start, end, document_end in zip(starts.tolist(), ends.tolist(), document_ends.tolist(), strict=True):
                length = end - start
                last = min(end + 1, document_end)
                tokens[row, place : place + length] = shard.tokens[start:end]
                following = shard.tokens[start + 1 : last]
                targets[row, place : place + len(following)] = following
                if learn_marked_only and shard.is_learnt is not None:
                    is_learnt = shard.is_learnt[start + 1 : last]
                    targets[row, place : place + len(following)][~is_learnt] = IGNORED
                segments[row, place : place + length] = segment
                place += length
                segment += 1
            segments[row, place:chunk_end] = segment
            place = chunk_end
            segment += 1
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), torch.from_numpy(segments))
