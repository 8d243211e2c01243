"""The keys and values of the tokens that a model has seen, so that each token is computed once.

B rows (one here), K key/value heads, T new tokens, S all tokens, H head size
"""

from __future__ import annotations

import torch
from torch import Tensor

from fox.model import ModelConfig


class KVCache:
    """Room for `max_tokens` tokens of one sequence. `num_tokens` of it are filled."""

    def __init__(self, config: ModelConfig, max_tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_tokens = 0
        self.max_tokens = max_tokens
        shape = (1, config.num_key_value_heads, max_tokens, config.head_dim)
        self.layers = [_Layer(self, shape, dtype, device) for _ in range(config.num_hidden_layers)]

    def truncate(self, num_tokens: int) -> None:
        """Forget all but the first `num_tokens`."""
        assert num_tokens <= self.num_tokens
        self.num_tokens = num_tokens


class _Layer:
    def __init__(self, cache: KVCache, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._cache = cache
        self._k_BKSH = torch.empty(shape, dtype=dtype, device=device)
        self._v_BKSH = torch.empty(shape, dtype=dtype, device=device)

    def extend(self, k_BKTH: Tensor, v_BKTH: Tensor) -> tuple[Tensor, Tensor]:
        """Put the new keys and values after those that are there, and give all. The model counts them once all layers have."""
        start = self._cache.num_tokens
        end = start + k_BKTH.shape[2]
        assert end <= self._cache.max_tokens, "the caller keeps within the cache"
        self._k_BKSH[:, :, start:end] = k_BKTH
        self._v_BKSH[:, :, start:end] = v_BKTH
        return self._k_BKSH[:, :, :end], self._v_BKSH[:, :, :end]
