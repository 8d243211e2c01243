"""Rotary positions (Su et al., arXiv 2104.09864): each pair of a head's numbers turns with its token's place.

B rows, K heads, T tokens, H head size, R = H/2 rotated pairs
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fox.model.config import ModelConfig, RopeScaling


def rotary_turn(place_BT: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, T, R) by which each pair of a head turns at each place."""
    frequency_R = frequencies(config, place_BT.device)
    if config.rope_scaling is not None:
        frequency_R = frequency_R / slowdown(frequency_R, config.rope_scaling)
    angle_B1TR = (place_BT[:, :, None].float() * frequency_R)[:, None]
    return angle_B1TR.cos(), angle_B1TR.sin()


def frequencies(config: ModelConfig, device: torch.device | None = None) -> Tensor:
    """By what angle each pair (R,) turns from one token to the next, before scaling."""
    return config.rope_theta ** -(
        torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    )


def slowdown(frequency_R: Tensor, scaling: RopeScaling) -> Tensor:
    """By what each frequency (R,) is divided: 1 is as it was."""
    if scaling.kind == "linear":
        return torch.full_like(frequency_R, scaling.factor)
    # How often a pair turns round within the original context decides: often, and it stays; rarely, and it is stretched.
    turns_R = scaling.original_max_position_embeddings * frequency_R / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_R = ((turns_R - low) / (high - low)).clamp(0, 1)
    return 1 / (kept_R + (1 - kept_R) / scaling.factor)


def rotate(x_BKTH: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor) -> Tensor:
    """Turn each pair (i, i + H/2) of a head, the order of Hugging Face's Llama weights."""
    first, second = x_BKTH.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos_B1TR - second * sin_B1TR, second * cos_B1TR + first * sin_B1TR], dim=-1)
    return turned.to(x_BKTH.dtype)
