"""Cross-entropy over a large vocabulary that never holds all logits at once.

The logits of 8,192 tokens over 256,000 entries take 8 GB in float32, and their gradient as much again. Here a chunk of
rows at a time is scored, turned into its share of the gradients, and forgotten; the idea of Liger and of
cut-cross-entropy (arXiv 2411.09009), in plain torch and for any device.

N rows (tokens), C rows of one chunk, D hidden size, V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fox.model.loss_by_vocabulary import losses_by_vocabulary
from fox.model.loss_of_large_head import losses_and_gradients_by_blocks
from fox.model.narrow import linear

IGNORED = -100
"""The target of a token that nothing is learnt from."""

# Logits held at once: 2^24 float32 are 64 MB, and never more than 1,024 rows, past which the products gain nothing.
_CHUNK_LOGITS = 1 << 24
# On a processor, oneDNN keeps memory for every size of product that it has met: when tuning, where each step has another
# number of targets, 15 MB more a step. So there are few sizes.
_ROWS_MULTIPLE = 256
_CHUNK_ROWS = 1024
# Of a head of more weights, products are by blocks: its bf16 copy and a product as large take more here than the scores that are kept there.
_WHOLE_WEIGHTS = 1 << 26


def summed_loss(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, each_N: Tensor | None = None) -> Tensor:
    """The sum of -log p(target) over the rows whose target is not IGNORED, in nats, float32.

    `each_N`, of zeros, float32, is filled with each row's own, through which no gradient goes. Products are in the autocast type where autocast is on. `plain_summed_loss` is its twin.
    """
    learnt = (target_N != IGNORED).nonzero().squeeze(1)
    padding = -len(learnt) % _ROWS_MULTIPLE
    rows = F.pad(learnt, (0, padding))  # of row 0, which is then ignored
    target = F.pad(target_N[learnt], (0, padding), value=IGNORED)
    if weight_VD.dtype != torch.float32:  # kept narrow to save memory: a float32 gradient of all of it would undo that
        total, loss_N = losses_by_vocabulary(hidden_ND[rows], weight_VD, target)
    else:
        total, loss_N = _Loss.apply(hidden_ND[rows], weight_VD, target, torch.is_grad_enabled())
    if each_N is not None:
        each_N[learnt] = loss_N[: len(learnt)]
    return total


def plain_summed_loss(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """What `summed_loss` computes, with all logits at once."""
    logits_NV = F.linear(hidden_ND, weight_VD).float()
    return F.cross_entropy(logits_NV, target_N, ignore_index=IGNORED, reduction="sum")


@torch.no_grad()
def loss_of_each(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """-log p(target) of each row (N,), in nats, float32; 0 where the target is IGNORED. To measure, not to train."""
    loss_N = torch.empty(len(target_N), dtype=torch.float32, device=hidden_ND.device)
    for rows in _chunks(len(target_N), weight_VD.shape[0]):
        logits_CV = linear(hidden_ND[rows], weight_VD).float()
        loss_N[rows] = F.cross_entropy(logits_CV, target_N[rows], ignore_index=IGNORED, reduction="none")
    return loss_N


def _chunks(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices of the rows, each of few enough for its logits to be held."""
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_LOGITS // vocab_size))
    return (slice(start, start + rows) for start in range(0, num_rows, rows))


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, grad_enabled: bool) -> Any:
        device = hidden_ND.device.type
        product_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        # Torch tells of `no_grad` only outside; the inputs' needs are the same with it.
        needs_gradients = grad_enabled and any(ctx.needs_input_grad[:2])
        of = losses_and_gradients_by_blocks if weight_VD.numel() > _WHOLE_WEIGHTS else _losses_and_gradients
        with torch.autocast(device, enabled=False):
            loss_N, *ctx.grads = of(hidden_ND, weight_VD, target_N, product_type, needs_gradients)
        ctx.mark_non_differentiable(loss_N)
        return loss_N.sum(), loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_ND, grad_weight_VD = ctx.grads
        ctx.grads = None  # they are turned into the answer in place: a second backward pass has nothing to take
        return grad_hidden_ND.mul_(grad_total), grad_weight_VD.mul_(grad_total), None, None


def _losses_and_gradients(
    hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, product_type: torch.dtype, needs_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `losses_and_gradients_by_blocks`, a few rows at a time with the whole head."""
    weight = weight_VD.to(product_type)
    grad_hidden_ND = torch.empty_like(hidden_ND) if needs_gradients else None
    grad_weight_VD = torch.zeros_like(weight_VD) if needs_gradients else None
    loss_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
    for rows in _chunks(len(hidden_ND), weight_VD.shape[0]):
        hidden_CD = hidden_ND[rows].to(product_type)
        unlearnt_C = target_N[rows] == IGNORED
        target_C1 = target_N[rows, None].clamp_min(0)
        logit_CV = (hidden_CD @ weight.T).float()
        share_CV = torch.softmax(logit_CV, 1)
        # The logarithm of the sum, from the likeliest entry: its share is at least 1/V, so nothing is lost in it.
        log_sum_C1 = logit_CV.amax(1, keepdim=True) - share_CV.amax(1, keepdim=True).log_()
        loss_N[rows] = (log_sum_C1 - logit_CV.gather(1, target_C1)).squeeze(1).masked_fill_(unlearnt_C, 0)
        if grad_hidden_ND is None or grad_weight_VD is None:
            continue
        grad_logit_CV = share_CV.scatter_add_(1, target_C1, torch.full_like(log_sum_C1, -1.0))
        grad_logit_CV.index_fill_(0, unlearnt_C.nonzero().squeeze(1), 0)  # a mask would pass through all rows
        grad_logit_CV = grad_logit_CV.to(product_type)
        grad_hidden_ND[rows] = grad_logit_CV @ weight
        if product_type == torch.float32:
            grad_weight_VD.addmm_(grad_logit_CV.T, hidden_CD)
        else:  # there is no product that adds to sums of another type
            grad_weight_VD += grad_logit_CV.T @ hidden_CD
    return loss_N, grad_hidden_ND, grad_weight_VD
