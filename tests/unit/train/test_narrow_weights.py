"""Weights in bf16 alone: rounding that is right on average, and a curve that follows the one of float32 weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fox.train.narrow_weights as narrow_weights
from fox.model import Transformer
from fox.model.loss import summed_loss
from fox.recipe import Recipe
from fox.recipe.schema import Optimizer
from fox.train.narrow_weights import OneByOne, narrow_matrices, round_by_chance
from fox.train.optimizer import make_optimizer
from fox.train.stages import new_model


def rounded(wide: Tensor, seed: int = 0) -> Tensor:
    narrow = torch.empty_like(wide, dtype=torch.bfloat16)
    round_by_chance(wide, narrow, torch.Generator().manual_seed(seed))
    return narrow


@pytest.mark.parametrize("value", [0.0, 1.0, -0.375, 3.0e38, float("inf"), float("-inf")])
def test_what_bf16_can_say_stays(value: float) -> None:
    wide = torch.full((1000,), value).bfloat16().float()
    assert torch.equal(rounded(wide).float(), wide)


def test_what_is_no_number_stays_none() -> None:
    assert rounded(torch.full((1000,), float("nan"))).isnan().all()


@pytest.mark.parametrize("value", [1.001, -1.001, 0.7, 1e-20, -3.3e7])
def test_each_neighbour_is_as_likely_as_it_is_near(value: float) -> None:
    wide = torch.full((40_000,), value)
    found = rounded(wide).double()
    below, above = found.min(), found.max()
    assert below < wide[0].double() < above and len(found.unique()) == 2
    assert torch.nextafter(below.bfloat16(), torch.tensor(torch.inf).bfloat16()) == above.bfloat16()
    spread = (above - below) / 2 / len(found) ** 0.5  # of the mean, at most
    assert abs(found.mean() - wide[0].double()) < 4 * spread


def test_a_tensor_of_many_blocks_is_rounded_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow_weights, "_BLOCK", 100)
    wide = torch.randn(33, 31, generator=torch.Generator().manual_seed(3))
    found = rounded(wide)
    assert ((found.float() - wide).abs() <= wide.abs() * 2**-7).all()
    assert not torch.equal(rounded(wide, seed=1), found)


STEPS = 100


def curve(model: Transformer, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> list[float]:
    """Losses on rows whose tokens follow from each other with some noise."""
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        row_BT = torch.randint(0, 60, (8, 1), generator=generator) + 3 * torch.arange(33)
        row_BT = (row_BT + torch.randint(0, 2, row_BT.shape, generator=generator)) % 60
        hidden_BTD = model(row_BT[:, :-1])
        loss = summed_loss(hidden_BTD.flatten(0, 1), model.output_weight_VD, row_BT[:, 1:].flatten()) / 256
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


SETTINGS = {
    "adamw": {"peak_learning_rate": 3e-4},
    "muon": {"peak_learning_rate": 3e-4},
    "adafactor": {"peak_learning_rate": 1e-3},
}


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_the_curve_follows_float32_weights_and_rounding_to_the_nearest_falls_behind(
    make_recipe: Callable[..., Recipe], name: str
) -> None:
    wanted = Optimizer(name=name, **SETTINGS[name])
    first = new_model(make_recipe(), 60)
    for (
        parameter
    ) in first.parameters():  # a trained model's weights are larger than fresh ones, and bf16's steps with them
        if parameter.ndim > 1:
            parameter.data.mul_(8)
    master, by_chance, to_nearest = (copy.deepcopy(first) for _ in range(3))
    for model in (by_chance, to_nearest):
        narrow_matrices(model)
    expected = curve(master, make_optimizer(master, wanted))
    found = curve(by_chance, make_optimizer(by_chance, wanted, "bf16-weights", seed=1))
    nearest = make_optimizer(to_nearest, wanted, "bf16-weights", seed=1)
    assert isinstance(nearest, OneByOne)
    nearest._round = lambda wide, narrow, generator: narrow.copy_(wide)
    behind = curve(to_nearest, nearest)
    learnt = expected[0] - sum(expected[-10:]) / 10
    apart = sum(found[-10:]) / 10 - sum(expected[-10:]) / 10
    lost = sum(behind[-10:]) / 10 - sum(expected[-10:]) / 10
    print(name, learnt, apart / learnt, lost / learnt)
    assert abs(apart) < 0.05 * learnt
    assert lost > 4 * abs(apart)


def test_state_is_float32_and_norms_stay_wide(make_recipe: Callable[..., Recipe]) -> None:
    model = new_model(make_recipe(), 60)
    narrow_matrices(model)
    optimizer = make_optimizer(model, Optimizer(peak_learning_rate=1e-3), "bf16-weights")
    curve(model, optimizer, 2)
    assert {p.dtype for p in model.parameters() if p.ndim > 1} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.ndim == 1} == {torch.float32}
    optimizer.load_state_dict(optimizer.state_dict())
    assert {v.dtype for state in optimizer.state.values() for v in state.values()} == {torch.float32}


def test_chance_follows_from_seed_step_and_parameter() -> None:
    numbers = {
        narrow_weights._mixed(seed, step, number) for seed in range(8) for step in range(8) for number in range(8)
    }
    assert len(numbers) == 512
