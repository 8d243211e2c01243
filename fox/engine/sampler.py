"""Choosing the next token.

V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the likeliest; `top_k` 0 and `top_p` 1 leave all tokens in."""

    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    seed: int = 0


def sample(logits_V: Tensor, sampling: Sampling, place: int) -> int:
    """A token id. The draw depends on (seed, place) alone, so a reply is the same however it was computed.

    Nucleus sampling as in Holtzman et al. (arXiv 1904.09751): the fewest likeliest tokens that have `top_p` together.
    """
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    logits_V = logits_V.float()
    scaled_V = (logits_V - logits_V.max()) / sampling.temperature  # none above 0, so none overflows
    sorted_V, token_V = scaled_V.sort(descending=True, stable=True)
    if sampling.top_k:
        sorted_V, token_V = sorted_V[: sampling.top_k], token_V[: sampling.top_k]
    probability_V = sorted_V.softmax(0)
    if sampling.top_p < 1:  # at 1, rounding of the sum must not cost the unlikeliest their chance
        before_V = probability_V.cumsum(0) - probability_V
        kept = max(1, int((before_V < sampling.top_p).sum()))
        probability_V = probability_V[:kept]
    generator = torch.Generator().manual_seed((sampling.seed * 0x9E3779B1 + place) & 0x7FFFFFFFFFFFFFFF)
    up_to_V = probability_V.double().cumsum(0).cpu()
    draw = torch.rand((), generator=generator, dtype=torch.float64) * up_to_V[-1]
    chosen = int(torch.searchsorted(up_to_V, draw, right=True))
    return int(token_V[min(chosen, len(up_to_V) - 1)])
