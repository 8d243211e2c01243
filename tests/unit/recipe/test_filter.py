"""A section that may be left out, within sections of any name: a source's filter."""

from pathlib import Path

import pytest

from fox.recipe import load_recipe
from fox.recipe.load import parse_override
from fox.recipe.reference import reference_markdown
from fox.recipe.schema import Filter, documentation, type_at
from fox.recipe.show import print_recipe
from fox.recipe.write import toml_page
from tests.unit.recipe.test_load_recipe import PAGE, page, told

__all__ = ["page"]

TABLE = '[source.texts.filter]\nlanguages = ["en", "de"]\nmax_bad_words = 2e0\n'


def test_a_source_has_no_filter_where_none_is_given(page: Path) -> None:
    loaded = load_recipe(page)
    assert loaded.recipe.source["texts"].filter is None
    assert ("source.texts.filter", None, "default") in loaded.rows()


def test_a_filter_on_the_page_and_beside_it(page: Path) -> None:
    page.write_text(PAGE + TABLE)
    loaded = load_recipe(page, ['source.texts.filter.rules=["c4", "gopher"]', "source.texts.filter.max_bad_words=3"])
    assert loaded.recipe.source["texts"].filter == Filter(
        languages=["en", "de"], max_bad_words=3, rules=["c4", "gopher"]
    )
    origins = {key: origin for key, _, origin in loaded.rows()}
    assert origins["source.texts.filter.languages"].endswith(":49")
    assert origins["source.texts.filter.rules"] == "-o"
    assert origins["source.texts.filter.min_language_score"] == "default"
    assert "source.chats.filter.rules" not in origins


def test_a_filter_that_only_the_command_line_gives(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_recipe(page, ['source.texts.filter.languages=["en"]'])
    assert loaded.recipe.source["texts"].filter == Filter(languages=["en"])
    print_recipe(loaded)
    assert 'source.texts.filter.languages = ["en"]  # -o\n' in capsys.readouterr().out
    assert parse_override("source.texts.filter.languages=[]") == (("source", "texts", "filter", "languages"), [])


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("source.texts.filter.rule=1", "-o  source.texts.filter.rule: unknown key. Did you mean rules? (known: bad_words, blocked_urls, "),
        ("source.texts.filter=1", "-o  source.texts.filter = 1: must be a table with keys of its own. About source.texts.filter: Drops"),
        ("source.texts.filter.rules=['c5']", "-o  source.texts.filter.rules[0] = 'c5': must be 'gopher' or 'repetition' or 'c4' or 'fineweb'."),
        ("source.texts.filter.min_language_score=2", "-o  source.texts.filter.min_language_score = 2: must be at most 1."),
        ("source.texts.filter.max_bad_words=-1", "-o  source.texts.filter.max_bad_words = -1: must be at least 0."),
        ("source.texts.filter.bad_words='x'", "-o  source.texts.filter.bad_words = 'x': must be a list in square brackets."),
        ("source.chats.filter.rules=['c4']", "-o  source.chats.filter: is about documents, and these are chats. Leave it out, or set source.chats.kind"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_it_is_told(page: Path, override: str, line: str) -> None:
    assert told(page, override)[0].startswith(line)


def test_a_run_s_recipe_is_read_again(page: Path, tmp_path: Path) -> None:
    page.write_text(PAGE + TABLE)
    recipe = load_recipe(page).recipe
    kept = tmp_path / "kept.toml"
    kept.write_text(toml_page(recipe.model_dump()))
    assert "[source.texts.filter]" in kept.read_text()
    assert load_recipe(kept).recipe == recipe


def test_the_reference_has_it() -> None:
    reference = reference_markdown()
    assert (
        "\n## `[source.NAME.filter]`\n" in reference
        and "| `max_bad_words` | whole number at least 0 | `0` |" in reference
    )
    assert type_at(("source", "web", "filter")) is Filter
    assert "py3langid" in documentation(("source", "web", "filter", "languages"))
