"""Too little memory is told before the first step, with what would fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fox.model import loss_by_vocabulary
from fox.plan import memory
from fox.plan.fits import step_memory, too_little_memory
from fox.recipe import Recipe, load_recipe

PAGE = Path(__file__).parents[2] / "recipes" / "fox-1-1.6b.toml"


def told(recipe: Recipe, free_gb: float) -> list[str]:
    stage = recipe.stage["broad"]
    problems = too_little_memory(recipe, "stage.broad", stage, 256_000, int(free_gb * 1e9), bf16_products=False)
    return [str(problem) for problem in problems]


def test_enough_is_enough() -> None:
    assert told(load_recipe(PAGE).recipe, 400) == []


@pytest.mark.parametrize("free_gb", [60, 40, 23])
def test_what_the_mend_proposes_fits(free_gb: float) -> None:
    (line,) = told(load_recipe(PAGE).recipe, free_gb)
    assert f"and {free_gb:.1f} GB are free" in line
    proposed = re.findall(r"-o (\S+=\S+)", line)
    assert proposed and float(re.findall(r"\(([\d.]+) GB\)", line)[0]) <= free_gb


def test_attention_of_our_own_keeps_no_weights() -> None:
    recipe = load_recipe(PAGE.with_name("tiny.toml")).recipe
    stage = recipe.stage["longer"]
    kept, without = (step_memory(recipe, stage, 4096, True, keeps_weights=keeps).total for keeps in (True, False))
    model = recipe.model
    of_row = model.num_attention_heads * stage.row_length**2 * 2
    assert kept - without == model.num_hidden_layers * stage.rows * of_row > 0


def test_a_thimble_fits_nothing() -> None:
    (line,) = told(load_recipe(PAGE).recipe, 2)
    assert "make the model smaller" in line


def test_the_loss_has_the_blocks_that_the_plan_counts() -> None:
    assert memory.VOCABULARY_BLOCK_WEIGHTS == loss_by_vocabulary._BLOCK_WEIGHTS


def told_to_ranks(recipe: Recipe, free_gb: float, devices: int) -> list[str]:
    stage = recipe.stage["broad"]
    problems = too_little_memory(
        recipe, "stage.broad", stage, 256_000, int(free_gb * 1e9), True, False, devices, beside_bytes=0
    )
    return [str(problem) for problem in problems]


def test_devices_that_share_the_state_need_less_of_it_each() -> None:
    recipe = load_recipe(PAGE).recipe
    shared = step_memory(recipe, recipe.stage["broad"], 256_000, True, 8, False).total
    assert told_to_ranks(recipe, shared / 1e9 + 0.1, 8) == []
    (line,) = told_to_ranks(recipe, shared / 1e9 - 0.1, 8)
    assert "in each of 8 processes" in line and "are free for each" in line
    assert told_to_ranks(recipe, shared / 1e9 + 0.1, 1), "one alone holds all of the state"


def test_what_is_for_one_process_is_not_proposed_to_many() -> None:
    recipe = load_recipe(PAGE).recipe
    for free_gb in (2, 8, 12, 16, 20, 24, 28):
        for line in told_to_ranks(recipe, free_gb, 8):
            assert "bf16-weights" not in line and "adafactor" not in line
            assert "-o stage.broad" in line or "-o train.activation_checkpointing" in line or "more GPUs" in line
    (line,) = told_to_ranks(recipe, 0.1, 8)
    assert "more GPUs or machines" in line
