"""A run that an older Fox did counts as done, whatever its recipe's keys are called now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fox.errors import UserError
from fox.recipe import load_recipe
from fox.runs.folder import Run
from fox.runs.inputs import recipe_inputs

RECIPE = Path(__file__).parents[3] / "recipes/tiny.toml"


def as_before(tmp_path: Path, temperature: float) -> tuple[Run, dict[str, Any]]:
    """A run whose evaluation was done when a recipe had no version; and what it would read now."""
    run = Run(tmp_path, load_recipe(RECIPE))
    (tmp_path / "manifests").mkdir()
    inputs = recipe_inputs(run.recipe, "eval")
    (tmp_path / "eval").mkdir()
    run.finish("eval", inputs, {}, 0.0)
    path = tmp_path / "manifests/eval.json"
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["recipe_version"]
    settings = manifest["inputs"]["eval"]
    del settings["reply_temperature"]
    manifest["inputs"]["eval"] = {**settings, "temperature": temperature, "top_p": settings.pop("reply_top_p")}
    path.write_text(json.dumps(manifest), "utf-8")
    return run, inputs


def test_a_run_with_the_old_keys_is_done(tmp_path: Path) -> None:
    run, inputs = as_before(tmp_path, 0.5)
    assert run.is_done("eval", inputs)


def test_another_value_of_an_old_key_is_told_by_its_name_of_today(tmp_path: Path) -> None:
    run, inputs = as_before(tmp_path, 0.25)
    with pytest.raises(UserError, match=r"eval.reply_temperature = 0.5: was 0.25 when `eval` was done"):
        run.is_done("eval", inputs)
