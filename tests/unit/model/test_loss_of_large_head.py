"""The loss of a large head, whose products are by blocks: its plain twin's loss and gradients, in little memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fox.model import loss, loss_by_vocabulary, loss_of_large_head
from fox.model.loss import IGNORED, plain_summed_loss, summed_loss

D, V = 32, 300
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Parts = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def every_head_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of blocks of 40 entries, and of chunks of 16 rows in float32 and 32 in bf16: neither divides what it is of."""
    monkeypatch.setattr(loss, "_WHOLE_WEIGHTS", 0)
    monkeypatch.setattr(loss, "_ROWS_MULTIPLE", 10)  # some of them padding
    monkeypatch.setattr(loss_by_vocabulary, "_BLOCK_WEIGHTS", 40 * D)
    monkeypatch.setattr(loss_of_large_head, "_SCORE_BYTES", 40 * V * 2)


def problem(rows: int = 101, ignored: float = 0.1) -> Parts:
    generator = torch.Generator().manual_seed(rows)
    hidden_ND = torch.randn(rows, D, generator=generator).requires_grad_()
    weight_VD = (torch.randn(V, D, generator=generator) * 0.3).requires_grad_()
    target_N = torch.randint(0, V, (rows,), generator=generator)
    return hidden_ND, weight_VD, target_N.masked_fill(torch.rand(rows, generator=generator) < ignored, IGNORED)


def loss_and_gradients(of: Loss, parts: Parts) -> list[Tensor]:
    total = of(*parts)
    return [total.detach(), *torch.autograd.grad(total / 8, parts[:2])]


def apart(ours: list[Tensor], plain: list[Tensor]) -> float:
    """The largest distance of loss and gradients, relative to their sizes."""
    assert [part.dtype for part in ours] == [torch.float32] * 3
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(ours, plain, strict=True))


@pytest.mark.parametrize(("rows", "ignored"), [(1, 0.0), (16, 0.0), (101, 0.3)])
def test_it_is_the_plain_loss_with_its_gradients(rows: int, ignored: float) -> None:
    parts = problem(rows, ignored)
    assert apart(loss_and_gradients(summed_loss, parts), loss_and_gradients(plain_summed_loss, parts)) < 1e-5


def test_bf16_products_are_near_the_float32_twin_and_their_own() -> None:
    """A bf16 number is off by up to 2^-9 of itself: hidden state, weight, score, share and product each once."""
    parts = problem()
    exact = loss_and_gradients(plain_summed_loss, parts)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = loss_and_gradients(summed_loss, parts), loss_and_gradients(plain_summed_loss, parts)
    assert 2**-12 < apart(ours, exact) < 2**-6
    assert apart(ours, plain) < 2**-7, "whose scores are rounded alike"


@pytest.mark.parametrize(("rows", "ignored"), [(0, 0.0), (37, 1.0)])
def test_nothing_to_learn_gives_nothing(rows: int, ignored: float) -> None:
    for made in loss_and_gradients(summed_loss, problem(rows, ignored)):
        assert not made.any()


def test_each_rows_own_loss_and_no_gradient_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden_ND, weight_VD, target_N = problem()
    each_N = torch.zeros(len(target_N))
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(Tensor, "scatter_add_", lambda *_: pytest.fail("computes a gradient"))
        assert not summed_loss(hidden_ND, weight_VD, target_N, each_N).requires_grad
    wanted_N = torch.nn.functional.cross_entropy(hidden_ND @ weight_VD.T, target_N, reduction="none")
    assert_close(each_N, wanted_N.detach())


@pytest.mark.parametrize("whole_weights", [0, 1 << 26])
def test_a_second_way_back_is_refused(whole_weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_WHOLE_WEIGHTS", whole_weights)
    total = summed_loss(*problem())
    total.backward(retain_graph=True)
    with pytest.raises(TypeError):
        total.backward()


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors held at once that were made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for part in tree_leaves((args, kwargs)):
            if isinstance(part, Tensor):
                self._known.add(part.untyped_storage()._cdata)  # if it is not, it was there before
        made = function(*args, **(kwargs or {}))
        for part in tree_leaves(made):
            if isinstance(part, Tensor) and part.untyped_storage()._cdata not in self._known:
                storage = part.untyped_storage()
                self._known.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.held)
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size


@pytest.mark.parametrize(("whole_weights", "is_small"), [(0, True), (1 << 26, False)])
def test_beyond_the_gradient_there_is_no_room_for_a_copy_of_the_head(
    whole_weights: int, is_small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_WHOLE_WEIGHTS", whole_weights)
    monkeypatch.setattr(loss, "_CHUNK_ROWS", 8)
    monkeypatch.setattr(loss_of_large_head, "_SCORE_BYTES", 8 * 4000 * 2)
    monkeypatch.setattr(loss_by_vocabulary, "_BLOCK_WEIGHTS", 100 * 64)
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(40, 64, generator=generator).requires_grad_()
    weight_VD = torch.randn(4000, 64, generator=generator).requires_grad_()
    target_N = torch.randint(0, 4000, (40,), generator=generator)
    with PeakBytes() as peak:
        with torch.autocast("cpu", torch.bfloat16):
            total = summed_loss(hidden_ND, weight_VD, target_N)
        total.backward()
    assert weight_VD.grad is not None
    beyond, bf16_copy = peak.most - weight_VD.grad.nbytes, weight_VD.nbytes // 2
    assert beyond < bf16_copy / 2 if is_small else beyond > 2 * bf16_copy


@pytest.mark.parametrize("lost", ["a target", "a block", "the sum over blocks", "the last chunk"])
def test_the_comparison_notices_what_is_lost(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = problem(ignored=0.0)
    plain = loss_and_gradients(plain_summed_loss, parts)
    match lost:
        case "a target":  # of the last block
            sound = loss_of_large_head.places_in
            monkeypatch.setattr(
                loss_of_large_head, "places_in", lambda block, target_C: sound(block, target_C.where(target_C < 280, 0))
            )
        case "a block":
            blocks = loss_of_large_head.vocabulary_blocks
            monkeypatch.setattr(loss_of_large_head, "vocabulary_blocks", lambda weight_VD: list(blocks(weight_VD))[:-1])
        case "the sum over blocks":
            monkeypatch.setattr(torch, "logaddexp", lambda _, other: other)
        case "the last chunk":
            monkeypatch.setattr(
                loss_of_large_head,
                "range",
                lambda start, stop, step: range(start, stop - step, step),
                raising=False,
            )
    assert not apart(loss_and_gradients(summed_loss, parts), plain) < 1e-3
