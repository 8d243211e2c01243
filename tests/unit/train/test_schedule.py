"""How fast it learns."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

from fox.recipe.schema import Schedule
from fox.train.schedule import learning_rate_fraction


def fraction(before: int, after: int, total: int = 1000, **keys: Any) -> float:
    schedule = Schedule(**{"warmup_tokens": 100, "decay_tokens": 400, **keys})
    return learning_rate_fraction(schedule, before, after, total)


COSINE = {"shape": "cosine", "decay_tokens": 0}
CONSTANT = {"shape": "constant", "decay_tokens": 0}


@pytest.mark.parametrize(
    ("step", "keys", "expected"),
    [
        ((0, 1), {}, 0.01),
        ((40, 50), {}, 0.5),
        ((90, 100), {}, 1.0),
        ((100, 101), {}, 1.0),
        ((590, 600), {}, 1.0),
        ((595, 605), {}, 1.0),  # the middle is where the decay starts
        ((690, 710), {}, 0.5),  # a quarter of the decay: 1 - sqrt(1/4)
        ((690, 710), {"decay_shape": "linear"}, 0.75),
        ((1000, 1000), {}, 0.0),
        ((980, 1000), {"decay_shape": "linear"}, 0.025),  # the last step, too, learns something
        ((1000, 1000), {"final_fraction": 0.1}, 0.1),
        ((790, 810), {"decay_shape": "linear", "final_fraction": 0.1}, 0.55),
        ((790, 810), {"final_fraction": 0.1}, 0.1 + 0.9 * (1 - math.sqrt(0.5))),
        ((0, 1), {"warmup_tokens": 0}, 1.0),
        ((990, 1000), {"decay_tokens": 0}, 1.0),
        ((240, 260), {"warmup_tokens": 0, "decay_tokens": 1000}, 0.5),
        ((490, 500), {"warmup_tokens": 500, "decay_tokens": 500}, 1.0),
        ((1001, 1010), {}, 0.0),
        ((40, 50), COSINE, 0.5),
        ((100, 100), COSINE, 1.0),
        ((540, 560), COSINE, 0.5),
        ((315, 335), COSINE, (1 + math.sqrt(0.5)) / 2),
        ((1000, 1000), {**COSINE, "final_fraction": 0.1}, 0.1),
        ((540, 560), {**COSINE, "final_fraction": 0.1}, 0.55),
        ((0, 100), {**COSINE, "warmup_tokens": 1000}, 0.1),
        ((40, 50), CONSTANT, 0.5),
        ((990, 1000), CONSTANT, 1.0),
    ],
)
def test_the_rate_at_its_corners(step: tuple[int, int], keys: dict[str, Any], expected: float) -> None:
    assert fraction(*step, **keys) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("keys", [{}, {"decay_shape": "linear"}])
def test_the_rate_rises_stays_and_falls(keys: dict[str, Any]) -> None:
    rates = [fraction(step, step + 1, final_fraction=0.05, **keys) for step in range(1000)]
    assert all(one < two for one, two in pairwise(rates[:100]))
    assert set(rates[99:600]) == {1.0}
    assert all(one > two for one, two in pairwise(rates[599:]))
    assert 0.05 < rates[-1] < 0.06


def test_a_cosine_falls_from_the_end_of_its_warmup_on() -> None:
    rates = [fraction(step, step + 1, **COSINE) for step in range(1000)]
    assert all(one < two for one, two in pairwise(rates[:100]))
    assert all(one > two for one, two in pairwise(rates[100:]))
    assert 0 < rates[-1] < 1e-5
