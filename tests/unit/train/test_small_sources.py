"""Sources of few chunks an epoch, beside a large one: next to no padding, and the mixture's shares of real tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fox.formats.token_shards import Shard
from fox.recipe import Recipe
from fox.train.curriculum import StageOrder, curriculum
from fox.train.packer import Limit
from fox.train.packing import Packing, packing
from fox.train.readings import padding_warnings, readings
from tests.unit.train.micro_training import recipe_of, shard_of

CHUNK = 1024


def recipe_with(**stage: Any) -> Recipe:
    """120 chunks of a large source and 120 of a small one, in 60 steps."""
    table = {"tokens": 240 * CHUNK, "chunk_length": CHUNK, "rows": 2, "batch_tokens": 4 * CHUNK, "mix": {"large": 1.0, "small": 1.0}}  # fmt: skip
    how = {"optimizer": {"peak_learning_rate": 1e-3}, "schedule": {"warmup_tokens": 0}}
    return recipe_of(
        source={"large": {"path": "l"}, "small": {"path": "s"}},
        stage={"only": {**table, **stage}},
        tune={**table, **stage, **how},
    )


def packed(folder: Path, recipe: Recipe, small: list[int], epochs: float = 1e9, tune: bool = False) -> tuple[list[StageOrder], Packing]:  # fmt: skip
    shards: dict[str, Shard] = {
        "large": shard_of(folder / "large.ds", [100 + 37 * n % 400 for n in range(600)]),
        "small": shard_of(folder / "small.ds", small),
    }
    tokens = {name: len(shard.tokens) for name, shard in shards.items()}
    orders = curriculum(recipe, {"tune": recipe.tune} if tune and recipe.tune else recipe.stage, tokens)
    return orders, packing(folder / "index", orders, shards, Limit("train.max_epochs", epochs))


SMALL = [[1100], [500] * 5, [7], [1023], [700] * 30, [3000, 2], [500] * 180]


@pytest.mark.parametrize("small", SMALL, ids=lambda small: f"{len(small)}x{small[0]}")
@pytest.mark.parametrize("lengths", [CHUNK, {"1024": 2, "256": 1}], ids=str)
def test_the_mixture_holds_for_real_tokens(small: list[int], lengths: Any, tmp_path: Path) -> None:
    orders, index = packed(tmp_path, recipe_with(chunk_length=lengths), small)
    assert all(lane["waste"] < 0.01 for lane in index.facts), index.facts
    real = {name: sum(lane["tokens"] for lane in index.facts if lane["source"] == name) for name in ("large", "small")}
    assert real["small"] / sum(real.values()) == pytest.approx(0.5, abs=0.005)
    assert not padding_warnings(index.facts, orders)
    seen = readings(index, orders)["seen"]["small"]
    assert sum(share > 0 for share in seen) <= 2, "all of it is read as often, but for once"


def test_what_waits_for_the_next_epoch_is_read_where_there_is_none(tmp_path: Path) -> None:
    """Two chunks of the small source at most, of 1,100 tokens."""
    recipe = recipe_with(tokens=120 * CHUNK, mix={"large": 118.0, "small": 2.0})
    orders, index = packed(tmp_path, recipe, [1100], 1.0)
    assert readings(index, orders)["seen"]["small"] == [0.0, 1.0]


def test_padding_that_leads_a_mixture_astray_is_told_where_nothing_may_be_cut(tmp_path: Path) -> None:
    orders, index = packed(tmp_path, recipe_with(), [600] * 10, tune=True)
    (line,) = padding_warnings(index.facts, orders)
    assert line.startswith("tune.mix: small has 50.0% of the chunks and 3")
    assert "41.4% of its chunks is padding" in line and "tune.chunk_length.small" in line
