"""A resolved recipe written as TOML is the same recipe when it is read again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.recipe import load_recipe
from fox.recipe.write import toml_page, toml_value
from tests.repo.test_recipes import SHAPES

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: page.stem)
def test_it_loads_as_the_same_recipe(page: Path, tmp_path: Path) -> None:
    recipe = load_recipe(page, shape_of=SHAPES.__getitem__).recipe
    (tmp_path / "again.toml").write_text(toml_page(recipe.model_dump()), encoding="utf-8")
    assert load_recipe(tmp_path / "again.toml", shape_of=SHAPES.__getitem__).recipe == recipe


@given(VALUES)
def test_any_value_is_read_back(value: Any) -> None:
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), VALUES, max_size=4))
def test_any_source_is_read_back(source: dict[str, Any]) -> None:
    page = {"name": "a", "source": {'b.c \n"': {"path": "x", **source}}}
    assert tomllib.loads(toml_page(page)) == page


def test_half_a_character_becomes_a_question_mark() -> None:
    assert toml_value("a\ud800b\x7f") == '"a?b\\u007f"'
