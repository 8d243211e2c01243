"""What each optimiser is made of, that it learns, and that its state comes back whole."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import fox.train.muon as muon
from fox.model import Transformer
from fox.model.loss import summed_loss
from fox.recipe import Recipe
from fox.recipe.schema import Optimizer
from fox.train.narrow_weights import narrow_matrices
from fox.train.optimizer import make_optimizer
from fox.train.stages import new_model

RATES = {"adamw": 1e-2, "muon": 1e-2, "adafactor": 0.1}
NAMES = sorted(RATES)


def learn(model: Transformer, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[float]:
    """Losses on made-up rows whose tokens follow from each other, the same at each step's number."""
    losses = []
    for step in range(first, first + steps):
        start = torch.randint(0, 60, (8, 1), generator=torch.Generator().manual_seed(step))
        row_BT = (start + 3 * torch.arange(17)) % 60
        loss = summed_loss(model(row_BT[:, :-1]).flatten(0, 1), model.output_weight_VD, row_BT[:, 1:].flatten()) / 128
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


@pytest.fixture
def model(make_recipe: Callable[..., Recipe]) -> Transformer:
    return new_model(make_recipe(), 60)


def settings(name: str, **keys: Any) -> Optimizer:
    return Optimizer(**{"name": name, "peak_learning_rate": RATES[name], **keys})


def test_only_matrices_are_decayed_and_each_parameter_is_learnt_once(model: Transformer) -> None:
    wanted = settings("adamw", weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-7)
    decayed, others = make_optimizer(model, wanted).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    assert (decayed["betas"], decayed["eps"]) == ((0.8, 0.9), 1e-7)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in others["params"]} == {1}
    found = [id(p) for p in [*decayed["params"], *others["params"]]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_without_gradient_takes_away_the_share_that_the_recipe_says(model: Transformer, name: str) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, settings(name, peak_learning_rate=0.5, weight_decay=0.2))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[key] * (0.9 if parameter.ndim > 1 else 1.0))


@pytest.mark.parametrize("name", NAMES)
def test_every_optimiser_learns(model: Transformer, name: str) -> None:
    losses = learn(model, make_optimizer(model, settings(name)), 40)
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("precision", ["float32", "bf16-weights"])
@pytest.mark.parametrize("name", NAMES)
def test_state_that_is_stored_by_name_and_loaded_goes_on_bit_for_bit(
    model: Transformer, name: str, precision: str
) -> None:
    if precision == "bf16-weights":
        narrow_matrices(model)
    optimizer = make_optimizer(model, settings(name), precision, seed=5)
    learn(model, optimizer, 4)
    stored = copy.deepcopy(
        get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))
    )
    twin = copy.deepcopy(model)
    expected = learn(model, optimizer, 4, first=4)
    resumed = make_optimizer(twin, settings(name), precision, seed=5)
    set_optimizer_state_dict(twin, resumed, stored, options=StateDictOptions(flatten_optimizer_state_dict=True))
    assert learn(twin, resumed, 4, first=4) == expected
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def torchs_own_muon(model: Transformer, wanted: Optimizer) -> tuple[torch.optim.Optimizer, ...]:
    inner = [p for p in model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is q for q in inner)]
    rate = wanted.peak_learning_rate
    return (
        torch.optim.Muon(inner, lr=rate, weight_decay=wanted.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": wanted.weight_decay},
                {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=rate,
            betas=(wanted.beta1, wanted.beta2),
        ),
    )


def steps_apart(model: Transformer, precision: str) -> float:
    """How far from torch.optim.Muon's the parameters' steps are after three, as a share of these steps."""
    wanted, twin, first = settings("muon"), copy.deepcopy(model), copy.deepcopy(model)
    ours, theirs = make_optimizer(model, wanted, precision), torchs_own_muon(twin, wanted)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in (ours, *theirs):
            optimizer.step()
    apart = [
        ((one - other).norm() / (other - before).norm()).item()
        for one, other, before in zip(model.parameters(), twin.parameters(), first.parameters(), strict=True)
    ]
    return max(apart)


def test_muon_steps_as_torchs_own(model: Transformer) -> None:
    # In bf16 the two differ by the order of sums alone; in float32 by torch's rounding to bf16, 2^-9 at each product.
    assert steps_apart(model, "bf16") < 1e-2
    assert steps_apart(model, "float32") < 2e-2


def test_the_comparison_notices_a_damaged_muon(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = muon.orthogonalised
    monkeypatch.setattr(muon, "orthogonalised", lambda x, group, kind: sound(x, {**group, "ns_steps": 4}, kind))
    assert steps_apart(model, "float32") > 5e-2


def test_muon_is_for_the_matrices_of_the_blocks(model: Transformer) -> None:
    inner, *rest = make_optimizer(model, settings("muon")).param_groups
    assert {id(p) for p in inner["params"]} == {id(p) for p in model.layers.parameters() if p.ndim == 2}
    assert id(model.embed_tokens.weight) in {id(p) for p in rest[0]["params"]}
    found = [id(p) for group in (inner, *rest) for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())


def test_adafactor_keeps_rows_and_columns_and_stands_zero_gradients(model: Transformer) -> None:
    optimizer = make_optimizer(model, settings("adafactor"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad[: len(parameter) // 2] = 1e-9  # as an untied embedding: rows of tokens that were not met
    optimizer.step()
    weight: nn.Parameter = model.embed_tokens.weight
    assert {key: tuple(value.shape) for key, value in optimizer.state[weight].items()} == {
        "step": (),
        "row_var": (60, 1),
        "col_var": (1, 32),
    }
    assert all(parameter.isfinite().all() for parameter in model.parameters())
