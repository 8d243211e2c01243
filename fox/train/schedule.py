"""The learning rate: warm-up, stable, decay (MiniCPM, arXiv 2404.06395), as a function of the tokens seen."""

from __future__ import annotations

import math

from fox.recipe.schema import Schedule


def learning_rate_fraction(schedule: Schedule, tokens_seen: int, total_tokens: int) -> float:
    """The share of the peak learning rate for the step that ends at `tokens_seen` of `total_tokens`."""
    warm = min(1.0, tokens_seen / schedule.warmup_tokens) if schedule.warmup_tokens else 1.0
    decay_start = total_tokens - schedule.decay_tokens
    if tokens_seen <= decay_start or not schedule.decay_tokens:
        return warm
    progress = min(1.0, (tokens_seen - decay_start) / schedule.decay_tokens)
    left = 1 - math.sqrt(progress) if schedule.decay_shape == "1-sqrt" else 1 - progress
    return min(warm, schedule.final_fraction + (1 - schedule.final_fraction) * left)
