"""How fast it learns, and what is decayed."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from fox.recipe import Recipe
from fox.recipe.schema import Optimizer, Schedule
from fox.train.optimizer import make_optimizer
from fox.train.schedule import learning_rate_fraction
from fox.train.stages import new_model


def fraction(seen: int, total: int = 1000, **keys: Any) -> float:
    return learning_rate_fraction(Schedule(**{"warmup_tokens": 100, "decay_tokens": 400, **keys}), seen, total)


@pytest.mark.parametrize(
    ("seen", "keys", "expected"),
    [
        (1, {}, 0.01),
        (50, {}, 0.5),
        (100, {}, 1.0),
        (101, {}, 1.0),
        (600, {}, 1.0),
        (700, {}, 0.5),  # a quarter of the decay: 1 - sqrt(1/4)
        (700, {"decay_shape": "linear"}, 0.75),
        (1000, {}, 0.0),
        (1000, {"final_fraction": 0.1}, 0.1),
        (800, {"decay_shape": "linear", "final_fraction": 0.1}, 0.55),
        (800, {"final_fraction": 0.1}, 0.1 + 0.9 * (1 - math.sqrt(0.5))),
        (1, {"warmup_tokens": 0}, 1.0),
        (1000, {"decay_tokens": 0}, 1.0),
        (1000, {"decay_tokens": 0, "warmup_tokens": 0}, 1.0),
        (1000, {"warmup_tokens": 0, "decay_tokens": 1000}, 0.0),
        (250, {"warmup_tokens": 0, "decay_tokens": 1000}, 0.5),
        (500, {"warmup_tokens": 500, "decay_tokens": 500}, 1.0),
        (1001, {}, 0.0),
    ],
)
def test_the_rate_at_its_corners(seen: int, keys: dict[str, Any], expected: float) -> None:
    assert fraction(seen, **keys) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_the_rate_rises_stays_and_falls(shape: str) -> None:
    rates = [fraction(seen, decay_shape=shape, final_fraction=0.05) for seen in range(1, 1001)]
    assert all(one < two for one, two in pairwise(rates[:100]))
    assert set(rates[99:600]) == {1.0}
    assert all(one > two for one, two in pairwise(rates[599:]))
    assert rates[-1] == pytest.approx(0.05)


def test_only_matrices_are_decayed_and_each_parameter_is_learnt_once(make_recipe: Callable[..., Recipe]) -> None:
    model = new_model(make_recipe(), 300)
    settings = Optimizer(peak_learning_rate=0.5, weight_decay=0.2, beta1=0.8, beta2=0.9, eps=1e-7)
    decayed, others = make_optimizer(model, settings).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.2, 0.0)
    assert (decayed["betas"], decayed["eps"]) == ((0.8, 0.9), 1e-7)
    assert {p.ndim for p in decayed["params"]} == {2} and {p.ndim for p in others["params"]} == {1}
    found = [id(p) for p in [*decayed["params"], *others["params"]]]
    assert sorted(found) == sorted(id(p) for p in model.parameters())


def test_a_step_without_gradient_takes_away_the_share_that_the_recipe_says(make_recipe: Callable[..., Recipe]) -> None:
    model = new_model(make_recipe(), 300)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, Optimizer(peak_learning_rate=0.5, weight_decay=0.2))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (0.9 if parameter.ndim > 1 else 1.0))
