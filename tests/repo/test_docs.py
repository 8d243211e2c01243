"""The pages that are made from the code are as the code has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fox.recipe.reference import COMMAND, reference_markdown
from fox.recipe.schema import Recipe, type_at
from fox.recipe.section import Section, is_section

ROOT = Path(__file__).parents[2]


def test_the_recipe_reference_is_the_schemas() -> None:
    page = (ROOT / "docs/recipe-reference.md").read_text(encoding="utf-8")
    assert page == reference_markdown(), f"docs/recipe-reference.md is not of today: run  {COMMAND}"


def test_the_command_that_is_named_writes_the_recipe_reference() -> None:
    python, target = COMMAND.split(" > ")
    assert target == "docs/recipe-reference.md"
    arguments = [sys.executable, *python.split()[1:]]
    made = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
    assert (made.stdout, made.stderr) == (reference_markdown(), "")


def sections() -> list[tuple[str, type[Section]]]:
    """Every table that a recipe may have, under the name that the reference gives it."""
    found: list[tuple[str, type[Section]]] = [("", Recipe)]
    for name, section in found:
        for key in section.model_fields:
            path = (*name.split("."), key) if name else (key,)
            for inner in (path, (*path, "NAME")):
                if is_section(type_at(inner)):
                    found.append((".".join(inner), type_at(inner)))
    return found


@pytest.mark.parametrize(("name", "section"), sections(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_key_is_in_the_reference_with_a_word_on_it(name: str, section: type[Section]) -> None:
    page = reference_markdown()
    assert not name or f"\n## `[{name}]`\n\n{section.__doc__}" in page
    for key, field in section.model_fields.items():
        if f"{name}.{key}".lstrip(".") not in {known.removesuffix(".NAME") for known, _ in sections()}:
            assert field.description, f"{name}.{key} has no docstring in fox/recipe/schema.py"
            assert f"| `{key}` | " in page and " ".join((field.description or "").split()) in page
