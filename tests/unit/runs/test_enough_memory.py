"""Too little memory is told before a training begins: to one process, to ranks that share a machine, and on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fox.errors import RecipeError
from fox.recipe import Recipe, load_recipe
from fox.runs.before_training import check_memory
from fox.runs.rows import stages_of
from fox.train import machine, team
from fox.train.team import ManyRanks

SMALL = Path(__file__).parents[3] / "recipes/small-cpu.toml"


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is one of two that torchrun has started on this machine."""
    ranks = ManyRanks.__new__(ManyRanks)
    ranks.rank, ranks.size = 0, 2
    monkeypatch.setattr(team, "_joined", ranks)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    return monkeypatch


def fits(recipe: Recipe) -> str:
    """What is told of too little memory; nothing where it suffices."""
    try:
        check_memory(recipe, stages_of(recipe), 16_384)
    except RecipeError as error:
        return str(error)
    return ""


def test_one_process_is_told_of_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_recipe(SMALL).recipe
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 10**9)
    assert "of memory, and 1.0 GB are free" in fits(small)
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 10**11)
    assert not fits(small)


def test_ranks_of_one_machine_are_told_of_too_little_memory(together: pytest.MonkeyPatch) -> None:
    small = load_recipe(SMALL).recipe
    together.setattr(machine, "free_memory_bytes", lambda: 10**9)
    assert "in each of 2 processes, and 0.5 GB are free for each" in fits(small)
    together.setattr(machine, "free_memory_bytes", lambda: 10**11)
    assert not fits(small)
    cut = load_recipe(SMALL, ["train.tensor_parallel=2"]).recipe
    together.setattr(machine, "free_memory_bytes", lambda: 10**9)
    assert not fits(cut), "of which nothing is known"


def test_a_gpu_is_asked_for_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_recipe(SMALL).recipe
    monkeypatch.setattr(machine, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (3 * 10**8, 10**10))
    assert "of memory, and 0.3 GB are free" in fits(small)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (10**11, 10**11))
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1)
    assert not fits(small)
