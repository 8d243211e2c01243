"""A plan of this machine: what was measured gives the rate, the time, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fox.errors import UserError
from fox.plan import Measured, describe, plan
from fox.recipe import Recipe, load_recipe
from fox.runs.choose import Wish, data_facts, plan_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPES / "tiny.toml").recipe


def measured(**other: int | float | bool) -> Measured:
    found = {"tokens_per_second": 4000.0, "peak_bytes": 10**9, "bytes_per_row": 10**8, "machine_bytes": 8 * 10**9}
    return Measured(**{**found, "compiled": False, "timed_rows": 8, **other})  # type: ignore[arg-type]


def of_all(recipe: Recipe, **other: int | float | bool) -> dict[str, Measured]:
    return {stage.key: measured(**other) for stage in plan(recipe).stages}


def test_the_time_follows_from_the_measured_rate(recipe: Recipe) -> None:
    told = plan(recipe, measured=of_all(recipe))
    assert told.days == pytest.approx(told.tokens / 4000 / 86_400)
    assert told.problems == ()
    page = describe(told)
    assert "tiny on this machine" in page and "were not compiled" in " ".join(page.split())
    assert [line for line in page.splitlines() if len(line) > 80] == []
    assert json.loads(json.dumps(told.as_dict()))["stages"][0]["measured"]["tokens_per_second"] == 4000


def test_a_stage_that_was_not_measured_leaves_the_time_unknown(recipe: Recipe) -> None:
    some = of_all(recipe)
    del some["tune"]
    assert plan(recipe, measured=some).days is None


def test_a_rate_that_is_given_goes_before(recipe: Recipe) -> None:
    assert plan(recipe, tokens_per_second=10, measured=of_all(recipe)).stages[0].tokens_per_second == 10


def test_too_little_memory_is_told_with_the_rows_that_fit(recipe: Recipe) -> None:
    told = plan(recipe, measured=of_all(recipe, machine_bytes=7 * 10**8))
    assert told.problems[0].key == "stage.foundation.rows"
    assert "-o stage.foundation.rows=4 (0.6 GB)" in told.problems[0].mend  # of 8: 5 would fit, and 4 divides
    told = plan(recipe, measured=of_all(recipe, machine_bytes=10**8))
    assert "single row would not fit" in told.problems[0].mend


@pytest.mark.parametrize(
    "wish", [Wish(gpu="l4"), Wish(gpus=2), Wish(tokens_per_second=5.0), Wish(measure="no")], ids=str
)
def test_nothing_is_measured_where_another_machine_is_meant(wish: Wish) -> None:
    assert not wish.measures()


def test_an_unknown_way_to_measure_is_refused() -> None:
    with pytest.raises(UserError, match="quick, compiled, no"):
        Wish(measure="twice").measures()


def test_a_small_recipe_is_measured(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.chdir(tmp_path)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 1}
    little = recipe.model_copy(update={"model": recipe.model.model_copy(update=small), "tune": None})
    page = json.loads(plan_recipe(little, Wish(measure="quick"), True, Console(quiet=True)))
    assert all(stage["measured"]["tokens_per_second"] > 100 for stage in page["stages"])
    assert page["stages"][0]["measured"]["peak_bytes"] > 5e7


def test_data_that_is_not_there_is_not_known(tmp_path: Path) -> None:
    assert data_facts(tmp_path).sources == {}
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/data.json").write_text("{")
    assert data_facts(tmp_path).sources == {}
