"""The loss by blocks of the vocabulary: its plain twin's loss and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fox.model.loss_by_vocabulary as by_vocabulary
from fox.model.loss import IGNORED, plain_summed_loss, summed_loss
from fox.model.loss_by_vocabulary import summed_loss_by_vocabulary

Parts = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """Rows, weights and targets over several chunks and blocks, none of which they divide into."""
    monkeypatch.setattr(by_vocabulary, "_BLOCK_WEIGHTS", 40 * 32)
    monkeypatch.setattr(by_vocabulary, "_CHUNK_ROWS", 30)
    generator = torch.Generator().manual_seed(0)
    target_N = torch.randint(0, 300, (100,), generator=generator)
    target_N[[0, 31, 99]] = IGNORED
    return (
        torch.randn(100, 32, generator=generator),
        torch.randn(300, 32, generator=generator),
        target_N,
    )


def loss_and_gradients(loss, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Parts:  # type: ignore[no-untyped-def]
    hidden_ND, weight_VD = hidden_ND.clone().requires_grad_(), weight_VD.clone().requires_grad_()
    total = loss(hidden_ND, weight_VD, target_N)
    (total / 97).backward()
    assert hidden_ND.grad is not None and weight_VD.grad is not None
    return total.detach(), hidden_ND.grad, weight_VD.grad


def apart(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def test_it_is_the_plain_loss_with_its_gradients(parts: Parts) -> None:
    ours = loss_and_gradients(summed_loss_by_vocabulary, *parts)
    plain = loss_and_gradients(plain_summed_loss, *parts)
    assert max(apart(one, other) for one, other in zip(ours, plain, strict=True)) < 1e-5


@pytest.mark.parametrize("lost", ["places_in", "vocabulary_blocks"])
def test_the_comparison_notices_what_is_lost(parts: Parts, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    sound = getattr(by_vocabulary, lost)
    if lost == "places_in":  # targets of the last block
        damaged = lambda block, target_C: sound(block, target_C.where(target_C < 280, 0))  # noqa: E731
    else:  # a block
        damaged = lambda weight_VD: list(sound(weight_VD))[:-1]  # noqa: E731
    monkeypatch.setattr(by_vocabulary, lost, damaged)
    ours = loss_and_gradients(summed_loss_by_vocabulary, *parts)
    plain = loss_and_gradients(plain_summed_loss, *parts)
    assert min(apart(one, other) for one, other in zip(ours, plain, strict=True)) > 1e-4


def test_bf16_weights_get_bf16_gradients_of_float32_sums(parts: Parts) -> None:
    hidden_ND, weight_VD, target_N = parts
    narrow_VD = weight_VD.bfloat16()
    ours = loss_and_gradients(summed_loss, hidden_ND, narrow_VD, target_N)
    plain = loss_and_gradients(plain_summed_loss, hidden_ND, narrow_VD.float(), target_N)
    assert ours[2].dtype == torch.bfloat16
    assert_close(ours[0], plain[0], rtol=1e-5, atol=0)
    assert apart(ours[1], plain[1]) < 1e-5
    assert_close(ours[2], plain[2].bfloat16(), rtol=2**-7, atol=1e-7)  # one rounding, and no more


def test_products_are_in_the_autocast_type(parts: Parts) -> None:
    hidden_ND, weight_VD, target_N = parts
    exact = summed_loss_by_vocabulary(hidden_ND, weight_VD.bfloat16(), target_N)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = summed_loss_by_vocabulary(hidden_ND, weight_VD.bfloat16(), target_N)
    assert rounded.dtype == torch.float32
    assert 1e-7 < abs(rounded / exact - 1) < 1e-2
