"""The loss over a large vocabulary whose weights are bf16: no float32 copy of the weights or of their gradient, ever.

`fox.model.loss` goes through the tokens and adds to the whole gradient of the weights, in float32: 2.1 GB for 256,000 x 2,048. Here
one block of the vocabulary at a time is finished over all tokens and then narrowed. That needs each token's normaliser
beforehand, and so one more product: scores are made twice, four products for three (as cut-cross-entropy does, arXiv 2411.09009).

N rows (tokens), C rows of one chunk, D hidden size, V vocabulary, W entries of one block of it
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# 8,192 entries of 2,048 float32 are 64 MB, and their gradient as much; a chunk's scores are 32 MB.
_BLOCK_WEIGHTS = 1 << 24
_CHUNK_ROWS = 1024


def summed_loss_by_vocabulary(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """The sum of -log p(target) over the rows whose target is not negative, in nats, float32."""
    return losses_by_vocabulary(hidden_ND, weight_VD, target_N)[0]


def losses_by_vocabulary(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """`summed_loss_by_vocabulary`, and each row's own (N,), through which no gradient goes.

    Products are in the autocast type where autocast is on, else in the hidden states'. `fox.model.loss.plain_summed_loss` is its twin.
    """
    device = hidden_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    product_type = torch.get_autocast_dtype(device) if autocast else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        return _Loss.apply(hidden_ND, weight_VD, target_N, product_type)


def vocabulary_blocks(weight_VD: Tensor) -> Iterator[slice]:
    """The vocabulary in blocks of entries whose weights are few enough to be held once more, and in float32."""
    vocab_size, hidden_size = weight_VD.shape
    entries = max(1, _BLOCK_WEIGHTS // hidden_size)
    return (slice(start, min(start + entries, vocab_size)) for start in range(0, vocab_size, entries))


def places_in(block: slice, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the block each target lies, and whether it lies there at all, both (C, 1)."""
    inside_C = (target_C >= block.start) & (target_C < block.stop)
    return (target_C - block.start).where(inside_C, 0)[:, None], inside_C[:, None]


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, product_type: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        log_sum_N = torch.full((len(hidden_ND),), -torch.inf, dtype=torch.float32, device=hidden_ND.device)
        picked_N = torch.zeros_like(log_sum_N)
        for block in vocabulary_blocks(weight_VD):
            weight_WD = weight_VD[block].to(product_type)
            for rows in _chunks(hidden_ND):
                logit_CW = (hidden_ND[rows].to(product_type) @ weight_WD.T).float()
                log_sum_N[rows] = torch.logaddexp(log_sum_N[rows], logit_CW.logsumexp(1))
                place_C1, inside_C1 = places_in(block, target_N[rows])
                picked_N[rows] += (logit_CW.gather(1, place_C1) * inside_C1).squeeze(1)
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, log_sum_N)
        ctx.product_type = product_type
        loss_N = (log_sum_N - picked_N).mul_(target_N >= 0)
        ctx.mark_non_differentiable(loss_N)
        return loss_N.sum(), loss_N

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_ND, weight_VD, target_N, log_sum_N = ctx.saved_tensors
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=torch.float32)
        grad_weight_VD = torch.empty_like(weight_VD)
        share_N1 = ((target_N >= 0) * grad_total)[:, None]
        for block in vocabulary_blocks(weight_VD):
            weight_WD = weight_VD[block].to(ctx.product_type)
            grad_weight_WD = torch.zeros_like(weight_WD, dtype=torch.float32)
            for rows in _chunks(hidden_ND):
                hidden_CD = hidden_ND[rows].to(ctx.product_type)
                grad_logit_CW = (hidden_CD @ weight_WD.T).float().sub_(log_sum_N[rows, None]).exp_()
                place_C1, inside_C1 = places_in(block, target_N[rows])
                grad_logit_CW.scatter_add_(1, place_C1, -inside_C1.float())
                grad_logit_CW = grad_logit_CW.mul_(share_N1[rows]).to(ctx.product_type)
                grad_hidden_ND[rows] += grad_logit_CW @ weight_WD
                grad_weight_WD += grad_logit_CW.T @ hidden_CD
            grad_weight_VD[block] = grad_weight_WD.to(weight_VD.dtype)
        return grad_hidden_ND.to(hidden_ND.dtype), grad_weight_VD, None, None


def _chunks(hidden_ND: Tensor) -> Iterator[slice]:
    return (slice(start, start + _CHUNK_ROWS) for start in range(0, len(hidden_ND), _CHUNK_ROWS))
