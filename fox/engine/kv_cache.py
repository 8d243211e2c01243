"""The keys and values of the tokens that a model has seen, so that each token is computed once.

B rows, K key/value heads, T new tokens, S all tokens, H head size
"""

from __future__ import annotations

import torch
from torch import Tensor

from fox.model import ModelConfig


class KVCache:
    """Up to `max_tokens` tokens of each of `rows` sequences, of which it holds `num_tokens`. Memory is taken as they come."""

    def __init__(
        self, config: ModelConfig, max_tokens: int, dtype: torch.dtype, device: torch.device, rows: int = 1
    ) -> None:
        self.num_tokens = 0
        self.max_tokens = max_tokens
        shape = (rows, config.num_key_value_heads, 0, config.head_dim)
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
        if end > self._k_BKSH.shape[2]:
            room = min(max(end, 2 * self._k_BKSH.shape[2]), self._cache.max_tokens)
            self._k_BKSH, self._v_BKSH = (_widened(x_BKSH, start, room) for x_BKSH in (self._k_BKSH, self._v_BKSH))
        self._k_BKSH[:, :, start:end] = k_BKTH
        self._v_BKSH[:, :, start:end] = v_BKTH
        return self._k_BKSH[:, :, :end], self._v_BKSH[:, :, :end]


def _widened(x_BKSH: Tensor, filled: int, room: int) -> Tensor:
    """`x_BKSH` with room for `room` tokens, of which the first `filled` are its own."""
    wide_BKSH = x_BKSH.new_empty((*x_BKSH.shape[:2], room, x_BKSH.shape[3]))
    wide_BKSH[:, :, :filled] = x_BKSH[:, :, :filled]
    return wide_BKSH
