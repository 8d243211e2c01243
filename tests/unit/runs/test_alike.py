"""Ranks that were given different recipes, or have different software, are told so before any work, all of them alike."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fox.errors import Problem
from fox.recipe import LoadedRecipe
from fox.runs.alike import _compared, differences
from fox.train.team import ALONE, Ended, ManyRanks
from tests.unit.train.micro_training import recipe_of

PRETRAIN = ["tokenizer", "data", "pretrain"]
RATE = {"optimizer": {"peak_learning_rate": 0.5}}


def team_of(rank: int, size: int, store: dist.Store) -> ManyRanks:
    """A rank with a store and no connection."""
    team = ManyRanks.__new__(ManyRanks)
    team.rank, team.size, team._store, team._said = rank, size, store, 0
    return team


def found_by(
    recipes: Sequence[dict[str, Any]], wanted: Sequence[str] = PRETRAIN
) -> list[tuple[list[Problem], list[str]]]:
    """What each rank finds, in a thread of its own; the leader comes last."""
    store, found = dist.HashStore(), {}

    def one(rank: int) -> None:
        loaded = LoadedRecipe(recipe_of(**recipes[rank]), {})
        found[rank] = differences(team_of(rank, len(recipes), store), loaded, wanted)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in reversed(range(len(recipes)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in range(len(recipes))]


def test_ranks_with_the_same_recipe_have_nothing_to_mend() -> None:
    assert found_by([{}, {}, {}]) == [([], [])] * 3
    assert differences(ALONE, LoadedRecipe(recipe_of(), {}), PRETRAIN) == ([], [])


def test_every_rank_finds_each_key_that_differs_on_which_rank_and_both_values() -> None:
    mixed = recipe_of().model_dump()["stage"]
    mixed["mixed"]["mix"] = {"a": 0.75, "c": 0.25}
    first, *others = found_by([{}, RATE, {"stage": mixed}, RATE])
    assert all(other == first for other in others)
    told = {problem.key: str(problem) for problem in first[0]}
    assert set(told) == {"optimizer.peak_learning_rate", "stage.mixed.mix.text", "stage.mixed.mix.a"}
    rate = told["optimizer.peak_learning_rate"]
    assert "optimizer.peak_learning_rate = 0.01: is that of rank 0, and rank 1 on " in rate
    assert "(and so have 1 more) has 0.5." in rate and "the same recipe and the same -o" in rate
    assert "stage.mixed.mix.a: is none on rank 0, and rank 2 on " in told["stage.mixed.mix.a"]
    assert told["stage.mixed.mix.text"].count("has none") == 1 and told["stage.mixed.mix.a"].count("has 0.75") == 1


def test_stages_in_another_order_are_another_recipe() -> None:
    stages = recipe_of().model_dump()["stage"]
    turned = {name: stages[name] for name in ("mixed", "short", "long")}
    for problems, _ in found_by([{}, {"stage": turned}]):
        (problem,) = problems
        assert problem.key.startswith("stage.short.") and "at another place in the recipe of rank 1" in str(problem)


def test_rows_that_one_rank_leaves_to_the_machine_are_another_recipe() -> None:
    loaded = LoadedRecipe(recipe_of(), {})
    told = [
        {"host": "here", "recipe": {key: value for key, value, _ in one.rows()}, "machine": {}}
        for one in (loaded, LoadedRecipe(recipe_of(), {}, auto_rows=("stage.short",)))
    ]
    (problem,) = _compared(told)["problems"]
    assert problem["key"] == "stage.short.rows" and "has 'auto'" in problem["problem"]


def of_machine(**facts: str) -> dict[str, Any]:
    usual = {
        "fox": "1",
        "torch": torch.__version__,
        "precision": "bf16",
        "attention": "our own",
        "instruction set": "A",
    }
    return {"host": "node-3", "recipe": {}, "machine": {**usual, **facts}}


@pytest.mark.parametrize(
    ("key", "value", "mend"),
    [
        ("fox", "2", "Install the same fox"),
        ("torch", "2.9", "Install the same torch"),
        ("precision", "float32", "-o train.precision=float32"),
        ("attention", "torch's", "g++"),
    ],
)
def test_software_that_losses_depend_on_must_be_the_same(key: str, value: str, mend: str) -> None:
    found = _compared([of_machine(), of_machine(), of_machine(**{key: value})])
    (problem,) = [Problem(**one) for one in found["problems"]]
    assert problem.key == key and mend in problem.mend and found["warnings"] == []
    assert "rank 2 on node-3 has" in problem.problem and value in problem.problem


def test_another_instruction_set_is_a_warning() -> None:
    found = _compared([of_machine(), of_machine(**{"instruction set": "B"})])
    assert found["problems"] == []
    assert found["warnings"][0].startswith("instruction set = 'A': is that of rank 0, and rank 1 on node-3 has 'B'.")


def test_the_leader_does_not_wait_for_one_that_has_failed() -> None:
    store = dist.HashStore()
    team_of(1, 3, store).first_to_tell(2)
    with pytest.raises(Ended) as ended:
        differences(team_of(0, 3, store), LoadedRecipe(recipe_of(), {}), PRETRAIN)
    assert ended.value.exit_code == 2
