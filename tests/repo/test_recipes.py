"""Every recipe in recipes/ loads, and can be planned without a problem on one device."""

from __future__ import annotations

from pathlib import Path

import pytest

from fox.plan import plan
from fox.recipe import load_recipe
from fox.recipe.start import Shape

# Of the models that recipes start from: what looking into them would tell, so that no test fetches one.
SHAPES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rope_theta": 100_000.0,
        },
        vocab_size=49_152,
    )
}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def test_there_are_the_three_that_the_documentation_names() -> None:
    assert {"tiny", "small-cpu", "fox-1-1.6b"} <= {page.stem for page in RECIPES}


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_it_loads(page: Path) -> None:
    recipe = load_recipe(page, shape_of=SHAPES.__getitem__).recipe
    assert recipe.name == page.stem, "runs/NAME should be found by the recipe's file name"


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_it_plans_without_a_problem(page: Path) -> None:
    assert [str(problem) for problem in plan(load_recipe(page, shape_of=SHAPES.__getitem__).recipe).problems] == []


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_its_stages_are_whole_steps_within_a_hundredth(page: Path) -> None:
    recipe = load_recipe(page, shape_of=SHAPES.__getitem__).recipe
    stages = {**recipe.stage, **({"tune": recipe.tune} if recipe.tune else {})}
    for name, stage in stages.items():
        assert stage.steps * stage.batch_tokens == pytest.approx(stage.tokens, rel=0.02), name


def test_fox_1_says_of_each_training_setting_whose_it_is() -> None:
    """Reported (`# R`) or ours (`# ours:`), on the line or just above. The paper confirms the tuning's size alone."""
    lines = (RECIPES[0].parent / "fox-1-1.6b.toml").read_text(encoding="utf-8").splitlines()
    section, marked_above = "", False
    for number, line in enumerate(lines, start=1):
        marked = "# ours:" in line or "# R" in line
        if line.startswith("["):
            section = line.split("]")[0].strip("[")
        elif line.startswith("#"):
            marked_above |= marked
            continue
        elif "=" in line and section.split(".")[0] in ("optimizer", "schedule", "stage", "tune"):
            confirmed = section == "tune" and line.startswith(("tokens = 5e9", "chunk_length = 8192"))
            assert marked or marked_above or confirmed, f"line {number} is not marked: {line}"
        marked_above = False
