"""Causal grouped-query attention, within documents only.

B rows, T new tokens, S all tokens so far, D hidden size, N query heads, K key/value heads, G = N/K query heads a key/value
head, H head size
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fox.kernels.attention import attend, causal_mask
from fox.model.config import ModelConfig
from fox.model.narrow import Linear
from fox.model.norm import RMSNorm
from fox.model.rotary import rotate


class LayerCache(Protocol):
    """Keys and values of the tokens that one layer has seen."""

    def extend(self, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new ones and give all: (k_BKSH, v_BKSH)."""
        ...


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245), where asked for with Qwen3's norm of queries and keys (2505.09388)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(query_size, config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps) if config.qk_norm else None

    def forward(
        self, x_BTD: Tensor, turn: tuple[Tensor, Tensor], mask_B1TS: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        q_BNTH, k_BKSH = self._heads(self.q_proj(x_BTD)), self._heads(self.k_proj(x_BTD))
        if self.q_norm is not None and self.k_norm is not None:
            q_BNTH, k_BKSH = self.q_norm(q_BNTH), self.k_norm(k_BKSH)
        q_BNTH, k_BKSH = rotate(q_BNTH, *turn), rotate(k_BKSH, *turn)
        v_BKSH = self._heads(self.v_proj(x_BTD))
        if cache is not None:
            k_BKSH, v_BKSH = cache.extend(k_BKSH, v_BKSH)
        out_BNTH = attend(q_BNTH, k_BKSH, v_BKSH, mask_B1TS)
        return self.o_proj(out_BNTH.transpose(1, 2).flatten(2))

    def _heads(self, x_BTE: Tensor) -> Tensor:
        return x_BTE.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


def document_mask(segment_BT: Tensor) -> Tensor:
    """(B, 1, T, T): may token t see token s, which is not after it and of the same segment of the row?"""
    same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
    return same_BTT[:, None] & causal_mask(segment_BT.shape[1], segment_BT.shape[1], segment_BT.device)


def places_in_segments(segment_BT: Tensor) -> Tensor:
    """(B, T): how many tokens before this one belong to the same run of equal segment numbers."""
    place_BT = torch.arange(segment_BT.shape[1], device=segment_BT.device).expand_as(segment_BT)
    starts_BT = torch.ones_like(segment_BT, dtype=torch.bool)
    starts_BT[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
    return place_BT - torch.where(starts_BT, place_BT, 0).cummax(dim=1).values
