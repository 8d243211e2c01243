"""Attention against its plain twin, and documents that share a row but never see each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fox.kernels import attention as kernel
from fox.kernels.attention import additive, attend, attend_plainly, causal_mask
from fox.model import ModelConfig, Transformer, attention
from fox.model.attention import document_mask, places_in_segments
from fox.model.rotary import rotary_turn

LENGTHS = [5, 1, 9, 2]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("new", "seen"), [(7, 0), (1, 12), (7, 12)])
def test_attend_is_its_plain_twin(kv_heads: int, new: int, seen: int) -> None:
    q, k, v = random(2, 4, new, 8), random(2, kv_heads, seen + new, 8), random(2, kv_heads, seen + new, 8)
    mask = causal_mask(new, seen + new, q.device) if seen else None
    assert_close(attend(q, k, v, mask), attend_plainly(q, k, v, mask), atol=1e-6, rtol=1e-5)
    assert_close(attend(q, k, v, mask), attend_plainly(q, k, v, None), atol=1e-6, rtol=1e-5)
    if kv_heads > 1:
        with pytest.raises(AssertionError):
            assert_close(attend(q, k.flip(1), v.flip(1), mask), attend_plainly(q, k, v, mask))


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_attend_with_documents_is_its_plain_twin(kv_heads: int) -> None:
    segment_BT = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]])
    q, k, v = random(2, 4, 8, 8), random(2, kv_heads, 8, 8), random(2, kv_heads, 8, 8)
    mask = document_mask(segment_BT)
    assert_close(attend(q, k, v, mask), attend_plainly(q, k, v, mask), atol=1e-6, rtol=1e-5)
    with pytest.raises(AssertionError):
        assert_close(attend(q, k, v, mask), attend_plainly(q, k, v, None))


@pytest.mark.parametrize("length", [8, 43, 48])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attend_by_products_and_its_gradients_are_its_plain_twins(
    kv_heads: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block of queries, and in four, the last one whole or shorter."""
    monkeypatch.setattr(kernel, "_FEWEST_QUERIES", 12)
    segment_BT = torch.tensor([[0, 0, 0, 1, 1, 2, 3, 3], [0, 1, 1, 1, 1, 1, 1, 1]]).repeat_interleave(6, 1)[:, :length]
    mask = additive(document_mask(segment_BT), torch.float32)
    given = [random(2, heads, length, 8).requires_grad_() for heads in (4, kv_heads, kv_heads)]
    weight = random(2, 4, length, 8).flip(0)

    def outcome(function: Callable[..., Tensor], mask: Tensor) -> list[Tensor]:
        out = function(*given, mask)
        return [out, *torch.autograd.grad((out * weight).sum(), given)]

    fast, plain = outcome(attend, mask), outcome(attend_plainly, mask)
    assert "_ByProducts" in type(attend(*given, mask).grad_fn).__name__
    for one, other in zip(fast, plain, strict=True):
        assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, damaged in zip(fast, outcome(attend_plainly, mask.roll(1, 0)), strict=True):
        with pytest.raises(AssertionError):
            assert_close(one, damaged, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_queries_and_keys_that_a_norm_left_in_float32_go_by_products_too(masked: bool) -> None:
    q, k = (random(2, heads, 16, 8).requires_grad_() for heads in (4, 2))
    v = random(2, 2, 16, 8).bfloat16().requires_grad_()
    mask = additive(causal_mask(16, 16, q.device).expand(2, -1, -1, -1), torch.bfloat16) if masked else None
    out = attend(q, k, v, mask)
    assert "_ByProducts" in type(out.grad_fn).__name__ and out.dtype == torch.bfloat16
    grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    plain = attend_plainly(q, k, v.float(), None)
    assert_close(out.float(), plain, atol=0.03, rtol=0.03)
    for grad, exact in zip(grads, torch.autograd.grad(plain.square().sum(), (q, k, v)), strict=True):
        assert ((grad.float() - exact.float()).norm() / exact.float().norm()).item() < 0.03


def test_masks_and_places_by_hand() -> None:
    cpu = torch.device("cpu")
    assert causal_mask(2, 4, cpu)[0, 0].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    segment_BT = torch.tensor([[4, 4, 5, 5], [0, 7, 7, 8]])
    assert document_mask(segment_BT)[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert places_in_segments(segment_BT).tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]


@pytest.fixture
def packed() -> tuple[Tensor, Tensor]:
    """Four documents in a row of 17 tokens, and their numbers."""
    token_BT = torch.randint(0, 400, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(3))
    return token_BT, torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))[None]


def alone(model: Transformer, token_BT: Tensor) -> Tensor:
    return torch.cat([model(document) for document in token_BT.split(LENGTHS, dim=1)], dim=1)


@torch.no_grad()
def test_packed_documents_are_each_as_if_alone(tiny_model: Transformer, packed: tuple[Tensor, Tensor]) -> None:
    token_BT, segment_BT = packed
    assert_close(tiny_model(token_BT, segment_BT), alone(tiny_model, token_BT), atol=1e-5, rtol=0)
    two_rows = tiny_model(token_BT.repeat(2, 1), torch.cat([segment_BT, torch.zeros_like(segment_BT)]))
    assert_close(two_rows[:1], alone(tiny_model, token_BT), atol=1e-5, rtol=0)
    assert_close(two_rows[1:], tiny_model(token_BT), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("lost", ["segments", "mask", "borders"])
def test_that_check_notices(
    lost: str, tiny_model: Transformer, packed: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    token_BT, segment_BT = packed
    wanted = alone(tiny_model, token_BT)
    if lost == "segments":
        segment_BT = None
    elif lost == "borders":
        segment_BT = torch.zeros_like(segment_BT)
    else:
        monkeypatch.setattr(attention, "attend", lambda q, k, v, mask, attend=attend: attend(q, k, v, None))
    with pytest.raises(AssertionError):
        assert_close(tiny_model(token_BT, segment_BT), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_places_start_anew_with_each_document(
    tiny_model: Transformer, packed: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary attention knows only distances, so no output shows it; it is the turn itself that must be the same."""
    seen: list[Tensor] = []

    def spy(place_BT: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
        seen.append(place_BT)
        return rotary_turn(place_BT, config)

    monkeypatch.setattr("fox.model.transformer.rotary_turn", spy)
    tiny_model(*packed)
    assert seen[0].tolist() == [[place for length in LENGTHS for place in range(length)]]


@torch.no_grad()
def test_nothing_leaks_between_documents(tiny_model: Transformer, packed: tuple[Tensor, Tensor]) -> None:
    token_BT, segment_BT = packed
    before = tiny_model(token_BT, segment_BT)
    for place in range(sum(LENGTHS)):
        changed_BT = token_BT.clone()
        changed_BT[0, place] = (changed_BT[0, place] + 1) % 400
        differs_T = (tiny_model(changed_BT, segment_BT) != before).any(-1)[0]
        may_differ_T = (segment_BT[0] == segment_BT[0, place]) & (torch.arange(sum(LENGTHS)) >= place)
        assert torch.equal(differs_T, may_differ_T), (
            "bit for bit: itself and what follows in its document, nothing else"
        )


def test_no_gradient_leaks_between_documents(
    make_model: Callable[..., Transformer], packed: tuple[Tensor, Tensor]
) -> None:
    token_BT, segment_BT = packed
    model = make_model(tie_word_embeddings=False)
    token_BT = torch.arange(100, 100 + sum(LENGTHS))[
        None
    ]  # each once, so that its row of the embedding is its gradient
    model(token_BT, segment_BT)[segment_BT == 2].square().sum().backward()
    touched = model.embed_tokens.weight.grad[100 : 100 + sum(LENGTHS)].abs().sum(1) > 0
    assert touched.tolist() == (segment_BT[0] == 2).tolist()
