"""A reply, a token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch

from fox.engine.kv_cache import KVCache
from fox.engine.sampler import Sampling, sample
from fox.model import Transformer


def generate(
    model: Transformer,
    new_tokens: Sequence[int],
    cache: KVCache,
    sampling: Sampling,
    stop_ids: Collection[int],
    max_tokens: int,
) -> Iterator[int]:
    """Read `new_tokens` after what `cache` holds, then write up to `max_tokens` more, the stopping one included.

    When it ends, the cache holds all that was read and all that was written but the last token.
    """
    assert new_tokens
    device = next(model.parameters()).device
    feed = list(new_tokens)
    for _ in range(min(max_tokens, cache.max_tokens - cache.num_tokens - len(feed) + 1)):
        with torch.inference_mode():
            hidden_BTD = model(torch.tensor([feed], device=device), cache=cache)
            logits_V = model.logits(hidden_BTD[:, -1:])[0, -1]
        token = sample(logits_V, sampling, place=cache.num_tokens)
        yield token
        if token in stop_ids:
            return
        feed = [token]
