"""Causal grouped-query attention, fast and plain.

B rows, T new tokens, S all tokens so far, N query heads, K key/value heads, G = N/K query heads a key/value head, H head size
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fox.kernels.native.attention import attend_in_documents

# Where there is no kernel of our own (fox/kernels/native): up to this many tokens a row, on a processor, matrix products with
# all scores held beat torch's fused attention, whose backward pass is slow there: a whole training step of 16 layers of 512 at
# 1,024 tokens takes nine tenths of the time, one of 6 layers of 384 at 512 tokens as well (LOG.md). The scores grow with the
# square of the row, so longer rows are the fused one's.
_MOST_TOKENS_BY_PRODUCTS = 1024
_FEWEST_QUERIES = 128


def attend(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_B1TS: Tensor | None) -> Tensor:
    """Mix the values that each new token may see: those that the mask allows, or without one all up to itself (then T = S).

    The mask is True where a token may look, or 0 there and -inf elsewhere, in the type of the queries (see `additive`). Or it is
    (B, T) whole numbers: the first token that each may see, which is for our own kernel and for queries that it takes.
    Returns (B, N, T, H). `attend_plainly` is its twin.
    """
    dtype = v_BKSH.dtype  # norms of queries and keys leave these in float32
    if mask_B1TS is not None and mask_B1TS.dtype == torch.int32:
        return attend_in_documents(q_BNTH.to(dtype), k_BKSH.to(dtype), v_BKSH, mask_B1TS)
    short = q_BNTH.shape[2] == k_BKSH.shape[2] <= _MOST_TOKENS_BY_PRODUCTS
    if short and q_BNTH.device.type == "cpu":
        q_BNTH, k_BKSH = q_BNTH.to(dtype), k_BKSH.to(dtype)
        if mask_B1TS is None and torch.is_grad_enabled() and q_BNTH.requires_grad:
            all_before = causal_mask(q_BNTH.shape[2], q_BNTH.shape[2], q_BNTH.device)
            return _ByProducts.apply(q_BNTH, k_BKSH, v_BKSH, additive(all_before, dtype))
        if mask_B1TS is not None and mask_B1TS.dtype == dtype:
            return _ByProducts.apply(q_BNTH, k_BKSH, v_BKSH, mask_B1TS)
    group = q_BNTH.shape[1] // k_BKSH.shape[1]
    if group > 1:
        k_BKSH = k_BKSH.repeat_interleave(group, dim=1)
        v_BKSH = v_BKSH.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q_BNTH, k_BKSH, v_BKSH, attn_mask=mask_B1TS, is_causal=mask_B1TS is None)


def attend_plainly(q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_B1TS: Tensor | None) -> Tensor:
    """What `attend` computes, as the paper writes it (Vaswani et al., arXiv 1706.03762, equation 1)."""
    num_rows, num_kv_heads, _, head_dim = k_BKSH.shape
    new_tokens = q_BNTH.shape[2]
    q_BKGTH = q_BNTH.view(num_rows, num_kv_heads, -1, new_tokens, head_dim)
    score_BKGTS = torch.einsum("bkgth,bksh->bkgts", q_BKGTH, k_BKSH) * head_dim**-0.5
    causal_11TS = causal_mask(new_tokens, k_BKSH.shape[2], q_BNTH.device)
    if mask_B1TS is None:
        mask_B1TS = causal_11TS
    elif mask_B1TS.dtype == torch.int32:
        mask_B1TS = causal_11TS & (torch.arange(new_tokens) >= mask_B1TS[:, None, :, None])
    if mask_B1TS.dtype == torch.bool:
        score_BKGTS = score_BKGTS.masked_fill(~mask_B1TS[:, :, None], -torch.inf)
    else:
        score_BKGTS = score_BKGTS + mask_B1TS[:, :, None]
    return torch.einsum("bkgts,bksh->bkgth", score_BKGTS.softmax(-1), v_BKSH).flatten(1, 2)


def causal_mask(new_tokens: int, all_tokens: int, device: torch.device) -> Tensor:
    """(1, 1, T, S): may the new token t, the (S - T + t)-th of all, see token s?"""
    place_S = torch.arange(all_tokens, device=device)
    return (place_S[None, :] <= place_S[all_tokens - new_tokens :, None])[None, None]


def additive(mask_B1TS: Tensor, dtype: torch.dtype) -> Tensor:
    """A True-or-False mask as one to add to the scores: 0 and -inf."""
    return torch.zeros_like(mask_B1TS, dtype=dtype).masked_fill_(~mask_B1TS, -torch.inf)


class _ByProducts(torch.autograd.Function):
    """Attention as matrix products over many scores at once, a key/value head's queries stacked as rows of one product.

    A block of queries takes the keys up to its last one and no later ones, which no query of it may see: with eight blocks,
    nine sixteenths of all scores. Keeps the weights for the backward pass (in the type of the queries).
    """

    @staticmethod
    def forward(ctx: Any, q_BNTH: Tensor, k_BKSH: Tensor, v_BKSH: Tensor, mask_B1TS: Tensor) -> Tensor:
        ctx.num_kv_heads, scale = k_BKSH.shape[1], q_BNTH.shape[-1] ** -0.5
        q_BNTH = q_BNTH * scale
        out_BNTH = torch.empty_like(q_BNTH)
        weights = []
        for t, s in _blocks(q_BNTH.shape[2]):
            q, k, v = _stacked(q_BNTH[:, :, t], ctx.num_kv_heads), k_BKSH[:, :, s], v_BKSH[:, :, s]
            score_BNTS = (q @ k.transpose(2, 3)).view(*q_BNTH[:, :, t].shape[:3], -1)
            weight_BNTS = torch.softmax(score_BNTS + mask_B1TS[:, :, t, s], dim=-1)
            out_BNTH[:, :, t] = (_stacked(weight_BNTS, ctx.num_kv_heads) @ v).view_as(out_BNTH[:, :, t])
            weights.append(weight_BNTS)
        ctx.save_for_backward(q_BNTH, k_BKSH, v_BKSH, *weights)
        return out_BNTH

    @staticmethod
    def backward(ctx: Any, grad_BNTH: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BNTH, k_BKSH, v_BKSH, *weights = ctx.saved_tensors
        grad_q_BNTH, grad_k_BKSH, grad_v_BKSH = map(torch.zeros_like, (q_BNTH, k_BKSH, v_BKSH))
        for (t, s), weight_BNTS in zip(_blocks(q_BNTH.shape[2]), weights, strict=True):
            q, k, v = _stacked(q_BNTH[:, :, t], ctx.num_kv_heads), k_BKSH[:, :, s], v_BKSH[:, :, s]
            grad = _stacked(grad_BNTH[:, :, t], ctx.num_kv_heads)
            grad_v_BKSH[:, :, s] += _stacked(weight_BNTS, ctx.num_kv_heads).transpose(2, 3) @ grad
            grad_weight_BNTS = (grad @ v.transpose(2, 3)).view_as(weight_BNTS)
            # The softmax's own gradient: weight x (grad - sum of weight x grad), one row at a time.
            grad_score_BNTS = torch._softmax_backward_data(grad_weight_BNTS, weight_BNTS, -1, weight_BNTS.dtype)
            grad_score = _stacked(grad_score_BNTS, ctx.num_kv_heads)
            grad_q_BNTH[:, :, t] = (grad_score @ k).view_as(grad_q_BNTH[:, :, t])
            grad_k_BKSH[:, :, s] += grad_score.transpose(2, 3) @ q
        return grad_q_BNTH.mul_(q_BNTH.shape[-1] ** -0.5), grad_k_BKSH, grad_v_BKSH, None


def _blocks(length: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with the keys that it may see some of: an eighth of the row, and no fewer than are worth a product."""
    size = max(_FEWEST_QUERIES, -(-length // 8))
    return (
        (slice(start, min(start + size, length)), slice(0, min(start + size, length)))
        for start in range(0, length, size)
    )


def _stacked(x_BNTX: Tensor, num_kv_heads: int) -> Tensor:
    """(B, N, T, X) as (B, K, G x T, X): the heads that share a key/value head, one below the other."""
    return x_BNTX.reshape(x_BNTX.shape[0], num_kv_heads, -1, x_BNTX.shape[-1])
