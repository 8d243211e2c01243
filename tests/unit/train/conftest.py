"""The micro training as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fox.formats.token_shards import Shard
from fox.recipe import Recipe
from tests.unit.train.micro_training import recipe_of, shard_of


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    return recipe_of


@pytest.fixture
def make_shard(tmp_path: Path) -> Callable[..., Shard]:
    def make(name: str, lengths: Sequence[int], with_loss_mask: bool = False, seed: int = 0) -> Shard:
        return shard_of(tmp_path / f"{name}.ds", lengths, with_loss_mask, seed)

    return make


@pytest.fixture
def shards(make_shard: Callable[..., Shard]) -> dict[str, Shard]:
    """A shard for each source of the recipe; `b` is the smallest, and comes round more than once."""
    return {
        "a": make_shard("a", [5 + 3 * n % 40 for n in range(60)], seed=1),
        "b": make_shard("b", [4 + 7 * n % 30 for n in range(20)], seed=2),
        "c": make_shard("c", [8 + 5 * n % 50 for n in range(40)], with_loss_mask=True, seed=3),
    }
