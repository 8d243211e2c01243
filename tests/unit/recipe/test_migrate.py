"""Pages of an older version: what they say is kept, and their writers are told what it is called now."""

from __future__ import annotations

from pathlib import Path

import pytest

from fox.errors import RecipeError
from fox.recipe import LoadedRecipe, load_recipe
from fox.recipe.migrate import migrated, new_name
from fox.recipe.schema import VERSION

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
TINY = next(path for path in RECIPES if path.stem == "tiny")


def page(tmp_path: Path, version: str, eval_keys: str) -> Path:
    text = (
        TINY.read_text("utf-8").replace("version = 2\n", f"{version}\n").replace("reply_temperature = 0.5", eval_keys)
    )
    assert text != TINY.read_text("utf-8")
    path = tmp_path / "page.toml"
    path.write_text(text, "utf-8")
    return path


def read(path: Path, *overrides: str) -> tuple[LoadedRecipe, list[str]]:
    told: list[str] = []
    return load_recipe(path, overrides, tell=told.append), told


def line_of(path: Path, start: str) -> int:
    return 1 + [line.startswith(start) for line in path.read_text("utf-8").splitlines()].index(True)


def wrong(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_of_today(recipe: Path) -> None:
    assert f"\nversion = {VERSION}\n" in recipe.read_text("utf-8")


@pytest.mark.parametrize("version", ["", "version = 1"])
def test_an_old_page_is_read_and_told_of_with_its_line(tmp_path: Path, version: str) -> None:
    old = page(tmp_path, version, "temperature = 0.25\ntop_p = 0.5")
    loaded, told = read(old)
    assert (loaded.recipe.eval.reply_temperature, loaded.recipe.eval.reply_top_p) == (0.25, 0.5)
    line = line_of(old, "temperature")
    assert told == [
        f"{old}:{line}  eval.temperature: is eval.reply_temperature since version 2 of recipes, and was taken for it.",
        f"{old}:{line + 1}  eval.top_p: is eval.reply_top_p since version 2 of recipes, and was taken for it.",
    ]
    assert ("eval.reply_top_p", 0.5, f"{old}:{line + 1}") in loaded.rows()
    assert ("version", 2) in [row[:2] for row in loaded.rows()]


def test_a_page_of_today_moves_nothing() -> None:
    assert read(TINY)[1] == []


def test_a_wrong_value_is_told_with_the_line_of_the_old_key(tmp_path: Path) -> None:
    old = page(tmp_path, "", "top_p = 1.5")
    (told,) = wrong(old)
    assert told.startswith(f"{old}:{line_of(old, 'top_p')}  eval.reply_top_p = 1.5: must be at most 1.")


@pytest.mark.parametrize("override", ["eval.temperature=0.75", "eval={ temperature = 0.75 }"])
def test_an_old_page_takes_old_overrides(tmp_path: Path, override: str) -> None:
    loaded, told = read(page(tmp_path, "", "temperature = 0.25"), override)
    assert loaded.recipe.eval.reply_temperature == 0.75
    assert told[-1].startswith("-o  eval.temperature: is eval.reply_temperature since version 2")
    assert loaded.origins["eval", "reply_temperature"] == "-o"


def test_an_old_page_takes_new_overrides(tmp_path: Path) -> None:
    assert (
        read(page(tmp_path, "", "temperature = 0.25"), "eval.reply_temperature=1")[0].recipe.eval.reply_temperature == 1
    )


def test_a_page_of_today_knows_the_old_key_no_more(tmp_path: Path) -> None:
    (told,) = wrong(TINY, "eval.temperature=0.5")
    assert told.startswith(
        "-o  eval.temperature: unknown key. It is eval.reply_temperature since version 2 of recipes."
    )
    (told,) = wrong(page(tmp_path, "version = 2", "temperature = 0.5"))
    assert "page.toml" in told and "It is eval.reply_temperature" in told


def test_both_names_at_once_are_refused(tmp_path: Path) -> None:
    (told,) = wrong(page(tmp_path, "", "temperature = 0.25\nreply_temperature = 0.5"))
    assert "eval.temperature = 0.25: is eval.reply_temperature today, which is given, too. Leave it out." in told


@pytest.mark.parametrize("value", ['"2"', "0", "-1", "1.0", "true", "[2]"])
def test_what_is_no_version_is_refused_by_name(tmp_path: Path, value: str) -> None:
    old = page(tmp_path, f"version = {value}", "reply_temperature = 0.5")
    (told,) = wrong(old)
    assert told.startswith(f"{old}:{line_of(old, 'version')}  version = ") and "is no version" in told


def test_a_page_of_a_later_fox_is_refused_by_name(tmp_path: Path) -> None:
    (told,) = wrong(page(tmp_path, "version = 3", "reply_temperature = 0.5"))
    assert "version = 3: is of a later Fox: this one reads recipes up to version 2." in told


def test_the_version_is_no_setting() -> None:
    (told,) = wrong(TINY, "version=1")
    assert told.startswith("-o  version = 1: is that of the page")


def test_kept_tables_are_brought_to_today() -> None:
    kept = {"seed": 1, "eval": {"temperature": 0.5, "top_p": 0.9, "reply_tokens": 4}}
    assert migrated(kept, 1) == {"seed": 1, "eval": {"reply_temperature": 0.5, "reply_top_p": 0.9, "reply_tokens": 4}}
    assert "temperature" in kept["eval"], "what was kept is not changed"  # type: ignore[operator]
    assert migrated(kept, 2) == kept


def test_names_that_never_were_have_no_new_name() -> None:
    assert new_name(("eval", "temperatur")) is None
    assert new_name(("eval", "prompts", 0)) is None
