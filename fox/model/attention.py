"""Causal grouped-query attention, with rotary positions, within documents only.

B rows, T new tokens, S all tokens so far, D hidden size, N query heads, K key/value heads, G = N/K query heads a key/value
head, H head size, R = H/2 rotated pairs
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from fox.kernels.attention import attend, causal_mask
from fox.model.config import ModelConfig


class LayerCache(Protocol):
    """Keys and values of the tokens that one layer has seen."""

    def extend(self, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new ones and give all: (k_BKSH, v_BKSH)."""
        ...


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., arXiv 2305.13245) with rotary positions (Su et al., arXiv 2104.09864)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def forward(
        self, x_BTD: Tensor, turn: tuple[Tensor, Tensor], mask_B1TS: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        q_BNTH = rotate(self._heads(self.q_proj(x_BTD)), *turn)
        k_BKSH = rotate(self._heads(self.k_proj(x_BTD)), *turn)
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


def rotary_turn(place_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, T, R) by which each pair of a head turns at each place."""
    frequency_R = theta ** -(torch.arange(0, head_dim, 2, device=place_BT.device, dtype=torch.float32) / head_dim)
    angle_B1TR = (place_BT[:, :, None].float() * frequency_R)[:, None]
    return angle_B1TR.cos(), angle_B1TR.sin()


def rotate(x_BKTH: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor) -> Tensor:
    """Turn each pair (i, i + H/2) of a head, the order of Hugging Face's Llama weights."""
    first, second = x_BKTH.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos_B1TR - second * sin_B1TR, second * cos_B1TR + first * sin_B1TR], dim=-1)
    return turned.to(x_BKTH.dtype)
