"""Licences and addresses describe a run: no step takes them in, and they may be added when it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fox.recipe import load_recipe
from fox.runs.folder import Run, flat
from fox.runs.inputs import recipe_inputs

RECIPE = Path(__file__).parents[3] / "recipes/tiny.toml"
DESCRIPTIONS = ["license=x", "source.speeches.license=y", "source.speeches.url=z", "source.chats.license="]
STEPS = ("tokenizer", "data", "pretrain", "tune", "eval", "report")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_not_done_again_for_a_licence(step: str) -> None:
    plain, described = (load_recipe(RECIPE, overrides).recipe for overrides in ([], DESCRIPTIONS))
    assert plain != described
    assert recipe_inputs(plain, step) == recipe_inputs(described, step)
    assert not [key for key in flat(recipe_inputs(plain, step)) if key.endswith(("license", "url"))]


@pytest.mark.parametrize("step", ["tokenizer", "data"])
def test_the_rest_of_a_source_is_an_input(step: str) -> None:
    plain, other = (load_recipe(RECIPE, overrides).recipe for overrides in ([], ["source.chats.max_bad_fraction=0.6"]))
    assert recipe_inputs(plain, step) != recipe_inputs(other, step)


def kept_after(folder: Path, *overrides: str) -> dict[str, object]:
    Run(folder, load_recipe(RECIPE, overrides)).keep_descriptions()
    kept: dict[str, object] = json.loads((folder / "recipe.json").read_text())["recipe"]
    return kept


def test_a_licence_reaches_the_recipe_that_is_kept(tmp_path: Path) -> None:
    with Run(tmp_path, load_recipe(RECIPE)).recipe_kept():
        pass
    before = (tmp_path / "recipe.json").stat().st_mtime_ns
    assert kept_after(tmp_path)["license"] == "Apache-2.0"
    assert (tmp_path / "recipe.json").stat().st_mtime_ns == before
    assert kept_after(tmp_path, *DESCRIPTIONS)["license"] == "x"
    assert kept_after(tmp_path, "license=w", "model.hidden_size=128")["license"] == "x", "that recipe is of another run"


def test_a_recipe_of_before_there_were_licences_gets_them(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE).recipe.model_dump()
    del recipe["license"]
    for source in recipe["source"].values():
        del source["license"], source["url"]
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe, "rows": []}))
    assert kept_after(tmp_path)["source"] == load_recipe(RECIPE).recipe.model_dump()["source"]


@pytest.mark.parametrize("kept", [None, "", "[]", "{}", '{"recipe": 3}', "\xff"])
def test_a_kept_recipe_that_is_none_stays_as_it_is(tmp_path: Path, kept: str | None) -> None:
    path = tmp_path / "recipe.json"
    if kept is not None:
        path.write_text(kept, encoding="latin-1")
    Run(tmp_path, load_recipe(RECIPE)).keep_descriptions()
    assert (path.read_text(encoding="latin-1") if path.exists() else None) == kept
