"""What is added up of one block and of two, beside a whole model."""

from __future__ import annotations

import pytest

from fox.recipe import Recipe
from fox.train import speed
from fox.train.speed import Shape, time_step
from tests.unit.train.micro_training import recipe_of

SHAPE = Shape(rows=4, row_length=128, document_lengths={64: 0.5, 128: 0.5})


def deep(layers: int) -> Recipe:
    recipe = recipe_of()
    model = recipe.model.model_copy(update={"num_hidden_layers": layers, "hidden_size": 64, "intermediate_size": 128})
    return recipe.model_copy(update={"model": model})


def cost_of(recipe: Recipe, limit_s: float = 5.0) -> speed.StepCost:
    found = time_step(recipe.model, 500, recipe.optimizer, SHAPE, recipe.train, compiled=False, limit_s=limit_s)
    assert found
    return found


def test_state_and_gradients_are_those_of_the_whole_model() -> None:
    """64 wide, 4 heads of 16, 2 kv heads: a block has 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64 weights."""
    parameters = 500 * 64 + 7 * 36_992 + 64
    found = cost_of(deep(7))
    assert found.gradient_bytes == 4 * parameters
    tensors = 2 + 7 * 9
    assert found.state_bytes == 12 * parameters + 4 * tensors  # AdamW counts steps in a float32 of each tensor


def test_memory_adds_up_to_what_a_whole_model_allocates() -> None:
    recipe = deep(7)
    whole = speed._Small(recipe.model, 500, recipe.optimizer, 7, recipe.train, compiled=False).cost(SHAPE, 4, turns=0)
    assert cost_of(recipe).pass_bytes == pytest.approx(whole.bytes, rel=0.1)


def test_a_deeper_model_is_slower_and_a_second_pass_keeps_gradients() -> None:
    few, many = cost_of(deep(2)), cost_of(deep(40))
    assert many.pass_seconds > few.pass_seconds
    assert many.tokens_per_second(1, 512) < few.tokens_per_second(1, 512)
    assert many.peak_bytes(2) - many.peak_bytes(1) == many.gradient_bytes


def test_rows_have_documents_in_their_shares() -> None:
    batch = speed._batch(SHAPE, 4, 500)
    assert [int(row.max()) + 1 for row in batch.segment_BL] == [2, 2, 1, 1]


def test_what_would_take_far_too_long_is_not_timed() -> None:
    recipe = deep(2)
    assert time_step(recipe.model, 500, recipe.optimizer, SHAPE, recipe.train, compiled=False, limit_s=1e-9) is None
