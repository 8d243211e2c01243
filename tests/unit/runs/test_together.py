"""What is said before any work where so many processes can't train a recipe."""

from __future__ import annotations

from typing import Any

import pytest

from fox.errors import UserError
from fox.runs.together import check_ranks
from tests.unit.train.micro_training import recipe_of

EVEN = {"tokens": 4096, "chunk_length": 16, "rows": 4, "batch_tokens": 512, "mix": {"text": 1.0}}


def told(ranks: int, **other: Any) -> str:
    with pytest.raises(UserError) as error:
        check_ranks(recipe_of(**{"stage": {"only": EVEN}, "tune": None, **other}), ranks, ["pretrain", "tune"])
    return str(error.value)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_steps_that_divide_among_the_ranks_are_fine(ranks: int) -> None:
    ramp = {"start": 512, "tokens": 2048}
    stage = {**EVEN, "batch_tokens": 1024, "batch_ramp": ramp}
    check_ranks(recipe_of(stage={"only": stage}, tune=None), ranks, ["pretrain"])


def test_batches_that_do_not_divide_are_told_with_the_nearest_that_do() -> None:
    said = told(3)
    assert "stage.only.batch_tokens = 512: is no multiple of ranks x rows x chunk length = 3 x 4 x 16 = 192" in said
    assert "-o stage.only.batch_tokens=576" in said
    check_ranks(recipe_of(stage={"only": {**EVEN, "batch_tokens": 576}}, tune=None), 3, ["pretrain"])


def test_the_first_step_of_a_ramp_must_divide_too() -> None:
    ramp = {"start": 64, "tokens": 2048}
    said = told(2, stage={"only": {**EVEN, "batch_ramp": ramp}})
    assert "stage.only.batch_ramp.start = 64: is no multiple" in said and "-o stage.only.batch_ramp.start=128" in said
    stage = {**EVEN, "batch_ramp": {**ramp, "start": 128}}
    recipe = recipe_of(stage={"only": stage}, tune=None)
    check_ranks(recipe, 2, ["pretrain"])
    only = recipe.stage["only"]
    assert {only.batch_tokens_of(step) % 128 for step in range(only.steps)} == {0}


def test_only_what_is_trained_is_looked_at() -> None:
    check_ranks(recipe_of(stage={"only": EVEN}, tune=None), 3, ["tokenizer", "data"])


def test_neighbours_that_share_heads_share_rows() -> None:
    check_ranks(recipe_of(stage={"only": EVEN}, tune=None, train={"tensor_parallel": 2}), 16, ["pretrain"])
    assert "train.tensor_parallel = 2: does not divide the 3 processes" in told(3, train={"tensor_parallel": 2})
    assert "model.num_key_value_heads = 2" in told(4, train={"tensor_parallel": 4})


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"train": {"precision": "bf16-weights"}}, "train.precision"),
        ({"optimizer": {"peak_learning_rate": 1e-2, "name": "adafactor"}}, "optimizer.name = 'adafactor'"),
        (
            {"train": {"tensor_parallel": 2}, "optimizer": {"peak_learning_rate": 1e-2, "name": "muon"}},
            "optimizer.name = 'muon': needs whole heads",
        ),
    ],
)
def test_optimisers_of_whole_weights_are_refused(tables: dict[str, Any], said: str) -> None:
    assert said in told(2, **tables)
    check_ranks(recipe_of(**{"stage": {"only": EVEN}, "tune": None, **tables, "train": {}}), 1, ["pretrain"])
