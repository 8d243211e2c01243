"""The learning rate as a function of the tokens seen: a straight warm-up, and what the recipe lets follow it."""

from __future__ import annotations

import math

from fox.recipe.schema import Schedule


def learning_rate_fraction(schedule: Schedule, tokens_before: int, tokens_after: int, total_tokens: int) -> float:
    """The share of the peak learning rate for the step that takes a run from `tokens_before` to `tokens_after` tokens.

    The warm-up is read at the step's end and the rest at its middle, so that neither the first nor the last step learns
    nothing: read at its end, a decay to 0 wastes the last step, which is a quarter of a decay of four.
    """
    warm = min(1.0, tokens_after / schedule.warmup_tokens) if schedule.warmup_tokens else 1.0
    falling_tokens = _falling_tokens(schedule, total_tokens)
    since_start = (tokens_before + tokens_after) / 2 - (total_tokens - falling_tokens)
    if since_start <= 0 or not falling_tokens:
        return warm
    progress = min(1.0, since_start / falling_tokens)
    return min(warm, schedule.final_fraction + (1 - schedule.final_fraction) * _left(schedule, progress))


def _falling_tokens(schedule: Schedule, total_tokens: int) -> int:
    """Over how many of the last tokens the rate falls. fox.plan counts a recipe's decay in the same way."""
    match schedule.shape:
        case "wsd":
            return schedule.decay_tokens
        case "cosine":
            return max(0, total_tokens - schedule.warmup_tokens)
        case "constant":
            return 0


def _left(schedule: Schedule, progress: float) -> float:
    if schedule.shape == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - math.sqrt(progress) if schedule.decay_shape == "1-sqrt" else 1 - progress
