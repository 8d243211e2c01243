"""bf16 weights beside float32 activations, and blocks whose inside is made twice."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fox.model.narrow as narrow
from fox.model import ModelConfig, Transformer
from fox.model.loss import loss_of_each, summed_loss


@pytest.fixture
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, max_position_embeddings=64, rope_theta=1e4, rms_norm_eps=1e-5, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def gradients(model: Transformer) -> tuple[float, dict[str, Tensor]]:
    """The loss of two rows of two documents each, in which tokens come again and again, and every gradient."""
    token_BT = torch.randint(0, 20, (2, 40), generator=torch.Generator().manual_seed(1))
    segment_BT = (torch.arange(40) >= 15).long().expand(2, 40)
    model.zero_grad()
    hidden_BTD = model(token_BT[:, :-1], segment_BT[:, :-1])
    loss = summed_loss(hidden_BTD.flatten(0, 1), model.output_weight_VD, token_BT[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def narrowed(model: Transformer) -> tuple[Transformer, Transformer]:
    """The model with bf16 matrices, and the same weights in float32."""
    small, wide = copy.deepcopy(model), copy.deepcopy(model)
    for one, other in zip(small.parameters(), wide.parameters(), strict=True):
        if one.ndim > 1:
            one.data = one.data.bfloat16()
            other.data = one.data.float()
    return small, wide


def largest_difference(model: Transformer) -> float:
    small, wide = narrowed(model)
    (ours, found), (plain, expected) = gradients(small), gradients(wide)
    assert_close(ours, plain, rtol=1e-5, atol=0)
    assert {grad.dtype for grad in found.values() if grad.ndim > 1} == {torch.bfloat16}
    return max(((found[key].float() - expected[key]).norm() / expected[key].norm()).item() for key in expected)


def test_narrow_weights_learn_as_their_float32_twin(model: Transformer) -> None:
    assert largest_difference(model) < 3e-3  # one rounding to 2^-9


def test_the_comparison_notices_a_lost_gradient(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = narrow._Embedding.backward
    monkeypatch.setattr(narrow._Embedding, "backward", lambda ctx, grad: sound(ctx, grad * (grad > 0)))
    assert largest_difference(model) > 1e-2


def test_narrow_weights_score_as_their_float32_twin(model: Transformer) -> None:
    small, wide = narrowed(model)
    token_BT = torch.arange(30)[None]
    hidden_BTD = small(token_BT)
    assert hidden_BTD.dtype == torch.float32
    assert_close(small.logits(hidden_BTD), wide.logits(wide(token_BT)), rtol=1e-5, atol=1e-5)
    target_N = torch.arange(30)
    ours = loss_of_each(hidden_BTD[0], small.output_weight_VD, target_N)
    assert_close(ours, loss_of_each(hidden_BTD[0], wide.output_weight_VD, target_N), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["float32", "bf16"])
def test_blocks_made_twice_give_the_same_gradients(model: Transformer, weights: str) -> None:
    model = narrowed(model)[weights != "bf16"]
    loss, expected = gradients(model)
    expected = {name: grad.clone() for name, grad in expected.items()}
    model.checkpointing = True
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        again, found = gradients(model)
    assert again == loss
    for name, grad in expected.items():
        assert torch.equal(found[name], grad), name
    model.checkpointing = False
    before = len(kept)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        gradients(model)
    assert sum(kept[:before]) < 0.5 * sum(kept[before:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch is about to drop
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # it looks at every input's gradient
@pytest.mark.parametrize("weights", ["float32", "bf16"])
def test_blocks_made_twice_give_the_same_gradients_compiled(model: Transformer, weights: str) -> None:
    model = narrowed(model)[weights != "bf16"]
    loss, expected = gradients(model)
    expected = {name: grad.clone() for name, grad in expected.items()}
    for block in model.layers:
        block.compile(dynamic=False)
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        again, found = gradients(model)
        assert again == pytest.approx(loss, rel=1e-5)
        for name, grad in expected.items():
            assert_close(found[name], grad, rtol=2e-2, atol=1e-3)
