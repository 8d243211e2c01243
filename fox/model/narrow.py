"""Products with weights that are kept in a narrower type than the activations: each is widened for its own product alone.

A processor without bf16 instructions multiplies bf16 seven times slower than it widens a matrix and multiplies float32 (measured: 18
against 115 GFLOP/s on two AVX2 cores). And no widened copy waits for the way back: the narrow matrix does, and is widened again.

B rows, T tokens, N = B x T, D hidden size, E output size, V vocabulary, U different tokens
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight_ED: Tensor) -> Tensor:
    """x (..., D) times the weight's transpose, in x's type; the weight's gradient is in the weight's type.

    With equal types, or where autocast chooses the type, this is F.linear.
    """
    if x.dtype == weight_ED.dtype or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight_ED)
    return _Linear.apply(x, weight_ED)


def embed(token_BT: Tensor, weight_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """The tokens' rows of the weight (B, T, D) as `dtype`. A token's gradients are summed in `dtype`, and then narrowed."""
    if weight_VD.dtype == dtype:
        return F.embedding(token_BT, weight_VD)
    return _Embedding.apply(token_BT, weight_VD, dtype)


class Linear(nn.Linear):
    """A linear map without bias, whose weight may be narrower than what it maps."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_ED)
        return F.linear(x, weight_ED.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight_ED = ctx.saved_tensors
        grad_weight_ED = grad.flatten(0, -2).T @ x.flatten(0, -2)
        return grad @ weight_ED.to(x.dtype), grad_weight_ED.to(weight_ED.dtype)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token_BT: Tensor, weight_VD: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(token_BT, weight_VD)
        return F.embedding(token_BT, weight_VD).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[None, Tensor, None]:
        token_BT, weight_VD = ctx.saved_tensors
        met_U, of_token_N = token_BT.flatten().unique(return_inverse=True)
        grad_UD = grad_BTD.new_zeros(len(met_U), grad_BTD.shape[-1])
        grad_UD.index_add_(0, of_token_N, grad_BTD.flatten(0, 1))
        grad_weight_VD = torch.zeros_like(weight_VD)
        grad_weight_VD[met_U] = grad_UD.to(weight_VD.dtype)
        return None, grad_weight_VD, None
