"""Losses and gradients of a float32 head too large for a second copy: every product is of one block of the vocabulary.

`fox.model.loss` multiplies a few rows with the whole head. For 256,000 x 2,048 in bf16 that holds the head's bf16 copy and a product
as large, 1 GB each, beside the float32 gradient, to which that product is added for every 65 rows. Here a chunk's scores are kept
as they come from the product until their sum over all blocks is known. So none is made twice, as it must be in
`fox.model.loss_by_vocabulary`, where there is no float32 gradient to add to; and a chunk can have more rows, for there are fewer
bytes a score.

N rows (tokens), C rows of one chunk, D hidden size, V vocabulary, W entries of one block of it
"""

from __future__ import annotations

import torch
from torch import Tensor

from fox.model.loss_by_vocabulary import places_in, vocabulary_blocks

# Of a chunk's scores: 512 rows of 256,000 in bf16.
_SCORE_BYTES = 1 << 28
_CHUNK_ROWS = 1024


def losses_and_gradients_by_blocks(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, product_type: torch.dtype, needs_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Each row's -log p(target) (N,), in nats, float32, 0 where the target is negative; and their sum's gradients by the hidden
    states, in their type, and by the weights, in float32, or None.

    With autocast off: products are in `product_type`.
    """
    chunk_rows = min(_chunk_rows(len(weight_VD), product_type), max(1, len(hidden_ND)))
    sizes = [block.stop - block.start for block in vocabulary_blocks(weight_VD)]
    room = [hidden_ND.new_empty(chunk_rows, size, dtype=product_type) for size in sizes]
    loss_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
    grad_hidden_ND = torch.empty_like(hidden_ND) if needs_gradients else None
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_gradients else None
    for start in range(0, len(hidden_ND), chunk_rows):
        rows = slice(start, start + chunk_rows)
        hidden_CD, target_C = hidden_ND[rows].to(product_type), target_N[rows]
        scores = [room_CW[: len(hidden_CD)] for room_CW in room]
        log_sum_C1, picked_C1 = _fill(scores, hidden_CD, weight_VD, target_C)
        unlearnt_C1 = target_C[:, None] < 0
        loss_N[rows] = (log_sum_C1 - picked_C1).masked_fill_(unlearnt_C1, 0).squeeze(1)
        if grad_hidden_ND is not None and grad_weight_VD is not None:
            log_sum_C1.masked_fill_(unlearnt_C1, torch.inf)  # each entry's share is then 0
            grad_hidden_ND[rows] = _learn(scores, log_sum_C1, hidden_CD, weight_VD, target_C, grad_weight_VD)
    return loss_N, grad_hidden_ND, grad_weight_VD


def _chunk_rows(vocab_size: int, product_type: torch.dtype) -> int:
    """A power of two, so that there are few sizes of products, as `fox.model.loss` explains."""
    fitting = _SCORE_BYTES // (vocab_size * product_type.itemsize)
    return 1 << max(1, min(_CHUNK_ROWS, fitting)).bit_length() - 1


def _fill(scores: list[Tensor], hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Put each block's scores (C, W) in their place; the logarithm of their sum over all blocks, and the target's score, both (C, 1)."""
    log_sum_C1 = torch.full((len(hidden_CD), 1), -torch.inf, dtype=torch.float32, device=hidden_CD.device)
    picked_C1 = torch.zeros_like(log_sum_C1)
    for block, score_CW in zip(vocabulary_blocks(weight_VD), scores, strict=True):
        torch.mm(hidden_CD, weight_VD[block].to(hidden_CD.dtype).T, out=score_CW)
        logit_CW = score_CW.float()
        log_sum_C1 = torch.logaddexp(log_sum_C1, logit_CW.logsumexp(1, keepdim=True))
        place_C1, inside_C1 = places_in(block, target_C)
        picked_C1 += logit_CW.gather(1, place_C1) * inside_C1
    return log_sum_C1, picked_C1


def _learn(
    scores: list[Tensor],
    log_sum_C1: Tensor,
    hidden_CD: Tensor,
    weight_VD: Tensor,
    target_C: Tensor,
    grad_weight_VD: Tensor,
) -> Tensor:
    """Add to the weights' gradient, and the hidden states' (C, D), in float32. The scores are lost."""
    grad_hidden_CD = torch.zeros_like(hidden_CD, dtype=torch.float32)
    for block, score_CW in zip(vocabulary_blocks(weight_VD), scores, strict=True):
        grad_score_CW = score_CW.float().sub_(log_sum_C1).exp_()
        place_C1, inside_C1 = places_in(block, target_C)
        grad_score_CW = grad_score_CW.scatter_add_(1, place_C1, -inside_C1.float()).to(hidden_CD.dtype)
        grad_hidden_CD += grad_score_CW @ weight_VD[block].to(hidden_CD.dtype)
        if hidden_CD.dtype == torch.float32:
            grad_weight_VD[block].addmm_(grad_score_CW.T, hidden_CD)
        else:  # there is no product that adds to sums of another type
            grad_weight_VD[block].add_(grad_score_CW.T @ hidden_CD)
    return grad_hidden_CD
