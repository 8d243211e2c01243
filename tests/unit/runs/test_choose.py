"""What `fox plan` takes of this machine: its memory for a proposal, and how its speed is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fox.plan import Measured, plan
from fox.recipe import Recipe, load_recipe
from fox.runs import choose
from fox.runs.choose import Wish, propose_for
from fox.train import machine
from fox.train.speed import Shape

RECIPES = Path(__file__).parents[3] / "recipes"
QUIET = Console(quiet=True)


def proposed_parameters(wish: Wish) -> int:
    return int(json.loads(propose_for(None, "3000d", wish, None, True, QUIET))["parameters"])


def test_a_proposal_is_for_the_memory_that_is_free_or_for_that_of_the_gpu_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Wish(tokens_per_second=3000)
    parameters = []
    for free_gb in (4, 1000):
        monkeypatch.setattr(machine, "free_memory_bytes", lambda free_gb=free_gb: free_gb * 10**9)
        parameters.append(proposed_parameters(here))
    assert 16 * parameters[0] < 4e9 < 16 * parameters[1], "16 bytes a parameter"
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 4 * 10**9)
    of_gpu = proposed_parameters(Wish(tokens_per_second=3000, gpu="h100-80gb"))
    assert of_gpu > parameters[0]


@pytest.mark.parametrize(
    ("how", "compiles", "rows", "expected"),
    [
        ("auto", True, 8, True),
        ("auto", True, 10**7, False),
        ("auto", False, 8, False),
        ("compiled", True, 10**7, True),
        ("compiled", False, 8, False),
        ("quick", True, 8, False),
    ],
)
def test_blocks_are_timed_as_the_recipe_trains_them(how: str, compiles: bool, rows: int, expected: bool) -> None:
    recipe = load_recipe(RECIPES / "tiny.toml", [f"train.compile={str(compiles).lower()}"]).recipe
    assert choose._compiles(recipe, Shape(rows, 128, {128: 1.0}), how) is expected


def test_what_compiling_gains_at_the_chosen_size_all_sizes_are_taken_to_gain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []

    def measured(recipe: Recipe, folder: Path, how: str, *_: object, **named: object) -> dict[str, Measured]:
        """A machine of 1 GFLOP/s, and of 1.6 where blocks are compiled."""
        asked.append(how)
        speeds = {"quick": 1e9, "auto": 1.6e9, "compiled": 1.6e9}
        made = plan(recipe)
        per_token = sum(stage.flops for stage in made.stages) / made.tokens
        return {stage.key: Measured(speeds[how] / per_token, 0, 0, 0, how != "quick", 1) for stage in made.stages}

    monkeypatch.setattr(choose, "measure_here", measured)
    base = load_recipe(RECIPES / "tiny.toml")
    auto, all_compiled = (
        json.loads(propose_for(base, "2h", Wish(measure=how), None, True, QUIET)) for how in ("auto", "compiled")
    )
    assert asked.count("auto") == 1
    assert auto["tokens"] == pytest.approx(all_compiled["tokens"], rel=1e-3)
    assert auto["parameters"] == all_compiled["parameters"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch is about to drop
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # it looks at every input's gradient
def test_a_proposal_times_the_size_that_it_chooses_as_training_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    little = ["model.hidden_size=64", "model.intermediate_size=64", "model.num_hidden_layers=2"]
    pages = [
        json.loads(propose_for(load_recipe(RECIPES / "tiny.toml", [*little, *other]), "10m", wish, None, True, QUIET))
        for other, wish in (([], Wish()), ([], Wish(measure="quick")), (["train.compile=false"], Wish()))
    ]
    assert [any("not compiled" in note for note in page["notes"]) for page in pages] == [False, True, False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch is about to drop
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # it looks at every input's gradient
def test_a_plan_compiles_what_training_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ["model.hidden_size=64", "model.intermediate_size=64", "model.num_hidden_layers=2"]
    found = choose.measure_here(load_recipe(RECIPES / "tiny.toml", page).recipe, tmp_path, Wish().measure, QUIET)
    assert found and all(one.compiled and one.tokens_per_second > 100 for one in found.values())
