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

IGNORED = -100
"""The target of a token that nothing is learnt from."""

# Logits held at once: 2^24 float32 are 64 MB, and never more than 1,024 rows, past which the products gain nothing.
_CHUNK_LOGITS = 1 << 24
# On a processor, oneDNN keeps memory for every size of product that it has met: when tuning, where each step has another
# number of targets, 15 MB more a step. So there are few sizes.
_ROWS_MULTIPLE = 256
_CHUNK_ROWS = 1024


def summed_loss(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """The sum of -log p(target) over the rows whose target is not IGNORED, in nats, float32.

    Products are in the autocast type where autocast is on. `plain_summed_loss` is its twin.
    """
    learnt = (target_N != IGNORED).nonzero().squeeze(1)
    padding = -len(learnt) % _ROWS_MULTIPLE
    rows = F.pad(learnt, (0, padding))  # of row 0, which is then ignored
    target = F.pad(target_N[learnt], (0, padding), value=IGNORED)
    return _ChunkedLoss.apply(hidden_ND[rows], weight_VD, target, torch.is_grad_enabled())


def plain_summed_loss(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """What `summed_loss` computes, with all logits at once."""
    logits_NV = F.linear(hidden_ND, weight_VD).float()
    return F.cross_entropy(logits_NV, target_N, ignore_index=IGNORED, reduction="sum")


@torch.no_grad()
def loss_of_each(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """-log p(target) of each row (N,), in nats, float32; 0 where the target is IGNORED. To measure, not to train."""
    loss_N = torch.empty(len(target_N), dtype=torch.float32, device=hidden_ND.device)
    for rows in _chunks(len(target_N), weight_VD.shape[0]):
        logits_CV = F.linear(hidden_ND[rows], weight_VD).float()
        loss_N[rows] = F.cross_entropy(logits_CV, target_N[rows], ignore_index=IGNORED, reduction="none")
    return loss_N


def _chunks(num_rows: int, vocab_size: int) -> Iterator[slice]:
    """Slices of the rows, each of few enough for its logits to be held."""
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_LOGITS // vocab_size))
    return (slice(start, start + rows) for start in range(0, num_rows, rows))


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor, grad_enabled: bool) -> Tensor:
        device = hidden_ND.device.type
        product_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        # Torch tells of `no_grad` only outside; the inputs' needs are the same with it.
        needs_gradient = grad_enabled and any(ctx.needs_input_grad[:2])
        weight = weight_VD.to(product_type)
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_gradient else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_gradient else None
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        with torch.autocast(device, enabled=False):
            for rows in _chunks(len(hidden_ND), weight_VD.shape[0]):
                hidden_CD = hidden_ND[rows].to(product_type)
                learnt_C1 = target_N[rows, None] != IGNORED
                target_C1 = target_N[rows, None].clamp_min(0)
                logit_CV = (hidden_CD @ weight.T).float()
                log_sum_C1 = logit_CV.logsumexp(1, keepdim=True)
                total += (log_sum_C1 - logit_CV.gather(1, target_C1)).mul_(learnt_C1).sum()
                if grad_hidden_ND is None or grad_weight_VD is None:
                    continue
                grad_logit_CV = logit_CV.sub_(log_sum_C1).exp_()
                grad_logit_CV.scatter_add_(1, target_C1, torch.full_like(log_sum_C1, -1.0))
                grad_logit_CV = grad_logit_CV.mul_(learnt_C1).to(product_type)
                grad_hidden_ND[rows] = grad_logit_CV @ weight
                grad_weight_VD += grad_logit_CV.T @ hidden_CD
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD)
        ctx.weight_type = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden_ND, grad_weight_VD = ctx.saved_tensors
        return grad_hidden_ND * grad_total, (grad_weight_VD * grad_total).to(ctx.weight_type), None, None
