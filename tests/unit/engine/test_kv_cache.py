"""Decoding from the cache is the plain forward pass, in whatever pieces it comes.

Where results are compared they are computed in float64: products of one row and of many sum in other orders, and in float32
what that leaves (1e-5 on some processors) is as large as the smallest fault worth finding.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fox.engine.kv_cache import KVCache
from fox.model import Transformer

LENGTH = 150


@pytest.fixture
def prompt_BT() -> Tensor:
    return torch.randint(0, 400, (1, LENGTH), generator=torch.Generator().manual_seed(0))


def new_cache(model: Transformer, max_tokens: int = LENGTH) -> KVCache:
    return KVCache(model.config, max_tokens, next(model.parameters()).dtype, torch.device("cpu"))


@torch.no_grad()
def decode_in_chunks(model: Transformer, prompt_BT: Tensor, chunk: int, drop_block: int | None = None) -> Tensor:
    cache, made = new_cache(model), []
    for part in prompt_BT.split(chunk, dim=1):
        made.append(model(part, cache=cache))
        if drop_block is not None:
            cache.layers[drop_block]._v_BKSH.zero_()
    assert cache.num_tokens == LENGTH
    return torch.cat(made, dim=1)


@pytest.mark.parametrize("chunk", [1, 7, 64, LENGTH])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@torch.no_grad()
def test_cached_decoding_matches_plain_forward(
    make_model: Callable[..., Transformer], prompt_BT: Tensor, chunk: int, kv_heads: int
) -> None:
    model = make_model(num_key_value_heads=kv_heads).double()
    assert_close(decode_in_chunks(model, prompt_BT, chunk), model(prompt_BT), atol=1e-5, rtol=0)


@torch.no_grad()
def test_that_check_notices_a_lost_block(tiny_model: Transformer, prompt_BT: Tensor) -> None:
    tiny_model.double()
    damaged = decode_in_chunks(tiny_model, prompt_BT, chunk=7, drop_block=0)
    with pytest.raises(AssertionError):
        assert_close(damaged, tiny_model(prompt_BT), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", [0, 1, 80])
@pytest.mark.parametrize("damaged", [False, True])
@torch.no_grad()
def test_truncated_and_gone_on_is_fresh(tiny_model: Transformer, prompt_BT: Tensor, kept: int, damaged: bool) -> None:
    cache = new_cache(tiny_model.double(), 2 * LENGTH)
    tiny_model(torch.cat([prompt_BT[:, :kept], prompt_BT.flip(1)[:, : LENGTH - kept]], dim=1), cache=cache)
    if not damaged:
        cache.truncate(kept)
    gone_on = tiny_model(prompt_BT[:, kept:], cache=cache)
    if damaged:
        with pytest.raises(AssertionError):
            assert_close(gone_on, tiny_model(prompt_BT)[:, kept:], atol=1e-5, rtol=0)
    else:
        assert_close(gone_on, tiny_model(prompt_BT)[:, kept:], atol=1e-5, rtol=0)


def test_memory_is_taken_as_tokens_come(tiny_model: Transformer, prompt_BT: Tensor) -> None:
    cache = new_cache(tiny_model, max_tokens=1 << 28)
    with torch.no_grad():
        tiny_model(prompt_BT, cache=cache)
    assert cache.layers[0]._k_BKSH.shape[2] == LENGTH
    with pytest.raises(AssertionError, match="within the cache"), torch.no_grad():
        tiny_model(prompt_BT, cache=new_cache(tiny_model, LENGTH - 1))
