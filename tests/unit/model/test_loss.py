"""The chunked loss against its plain twin: values, gradients, and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from fox.model import Transformer, loss
from fox.model.loss import IGNORED, plain_summed_loss, summed_loss

N, D, V = 37, 16, 90
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(params=[1, 8, 37, 1000])
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """37 rows in chunks of one, of eight and five left over, in one that fits, and in one with room."""
    monkeypatch.setattr(loss, "_CHUNK_ROWS", request.param)
    return request.param


def problem(
    rows: int = N, vocabulary: int = V, ignored: float = 0.3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, D, generator=generator).to(dtype).requires_grad_()
    target = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden, weight, target.masked_fill(torch.rand(rows, generator=generator) < ignored, IGNORED)


def value_and_gradients(of: Loss, hidden: Tensor, weight: Tensor, target: Tensor, scale: float = 0.125) -> list[Tensor]:
    total = of(hidden, weight, target)
    return [total.detach(), *torch.autograd.grad(total * scale, (hidden, weight))]


def assert_same(one: list[Tensor], other: list[Tensor], rtol: float = 1e-5) -> None:
    for mine, plain in zip(one, other, strict=True):
        assert_close(mine, plain, rtol=rtol, atol=rtol * max(plain.abs().flatten().tolist(), default=0.0))


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_values_and_gradients(chunk_rows: int, ignored: float) -> None:
    given = problem(ignored=ignored)
    assert_same(value_and_gradients(summed_loss, *given), value_and_gradients(plain_summed_loss, *given))


def test_logits_limit_makes_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem()
    for limit in (1, V * 3, V * 5 + 1):
        monkeypatch.setattr(loss, "_CHUNK_LOGITS", limit)
        assert_same(value_and_gradients(summed_loss, *given), value_and_gradients(plain_summed_loss, *given))


@pytest.mark.parametrize("rows", [0, 1])
def test_hardly_any_rows(rows: int) -> None:
    given = problem(rows, ignored=0)
    assert_same(value_and_gradients(summed_loss, *given), value_and_gradients(plain_summed_loss, *given))


@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_padding_the_rows_changes_nothing(multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_ROWS_MULTIPLE", multiple)
    given = problem()
    assert_same(value_and_gradients(summed_loss, *given), value_and_gradients(plain_summed_loss, *given))


def test_all_ignored_is_nothing_at_all(chunk_rows: int) -> None:
    for made in value_and_gradients(summed_loss, *problem(ignored=1.0)):
        assert not made.any()


@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16])
def test_bfloat16_products(chunk_rows: int, weight_type: torch.dtype) -> None:
    """Logits and their gradients are rounded alike in both, so only the sums differ: the plain twin's gradient of the weight
    is rounded once to bfloat16 (2^-9 of a value), ours chunk by chunk. 2^-7 of the largest leaves room for either."""
    given = problem(dtype=weight_type)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(
            value_and_gradients(summed_loss, *given), value_and_gradients(plain_summed_loss, *given), rtol=2**-7
        )
    exact = value_and_gradients(
        plain_summed_loss, *(part.detach().float().requires_grad_() for part in given[:2]), given[2]
    )
    assert_same([part.float() for part in value_and_gradients(summed_loss, *given)], exact, rtol=2**-5)


def test_gradients_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, target = problem()
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(Tensor, "scatter_add_", lambda *_: pytest.fail("computes a gradient"))
        assert not summed_loss(hidden, weight, target).requires_grad
    (only_weight,) = torch.autograd.grad(summed_loss(hidden.detach(), weight, target), weight)
    assert_close(only_weight, value_and_gradients(summed_loss, hidden, weight, target, 1.0)[2])


def test_tied_weight_learns_from_both_its_uses(make_model: Callable[..., Transformer], chunk_rows: int) -> None:
    model, target_N = make_model(), torch.randint(0, 400, (37,), generator=torch.Generator().manual_seed(5))
    token_BT = torch.arange(37)[None]

    def gradient(of: Loss, output_weight: Callable[[Tensor], Tensor] = lambda weight: weight) -> list[Tensor]:
        model.zero_grad()
        of(model(token_BT).flatten(0, 1), output_weight(model.output_weight_VD), target_N).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    wanted = gradient(plain_summed_loss)
    assert_same(gradient(summed_loss), wanted, rtol=2e-5)
    with pytest.raises(AssertionError):
        assert_same(gradient(summed_loss, Tensor.detach), wanted)


class LargestTensor(TorchDispatchMode):
    """How many elements the largest tensor had that was made under it."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        tensors = made if isinstance(made, list | tuple) else [made]
        self.elements = max(self.elements, *(part.numel() for part in tensors if isinstance(part, Tensor)), 0)
        return made


@pytest.mark.parametrize(
    ("of", "rows", "is_small"), [(summed_loss, 8, True), (summed_loss, 512, False), (plain_summed_loss, 8, False)]
)
def test_no_tensor_is_as_large_as_the_logits(
    of: Loss, rows: int, is_small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "_CHUNK_ROWS", rows)
    given = problem(rows=512, vocabulary=1000, ignored=0)
    with LargestTensor() as seen:
        of(*given).backward()
    assert seen.elements == (1000 * D if is_small else 1000 * 512), "the weight's gradient, or else the logits"


@pytest.mark.parametrize("damage", ["softmax lost", "target lost", "last chunk lost"])
def test_the_comparison_notices(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_CHUNK_ROWS", 8)
    monkeypatch.setattr(loss, "_ROWS_MULTIPLE", 1)  # so that the last chunk is no padding
    given = problem(ignored=0)
    wanted = value_and_gradients(plain_summed_loss, *given)
    assert_same(value_and_gradients(summed_loss, *given), wanted)
    match damage:
        case "softmax lost":
            monkeypatch.setattr(torch, "softmax", lambda logits, dim: logits)
        case "target lost":
            monkeypatch.setattr(Tensor, "scatter_add_", lambda self, *_: self)
        case "last chunk lost":
            monkeypatch.setattr(loss, "range", lambda start, stop, step: range(start, stop - step, step), raising=False)
    with pytest.raises(AssertionError):
        assert_same(value_and_gradients(summed_loss, *given), wanted)
