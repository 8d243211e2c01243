"""A source of the best documents of another, and what the page may not say of it."""

from pathlib import Path

import pytest

from fox.recipe import load_recipe
from tests.unit.recipe.test_load_recipe import page, told

__all__ = ["page"]

GOOD = "data.quality.good=['good.jsonl']"
BEST = "source.best.path=top:texts"


def test_a_source_of_the_best_is_one_of_text_and_makes_a_corpus(page: Path) -> None:
    assert not load_recipe(page).recipe.makes_corpus
    recipe = load_recipe(page, [GOOD, BEST]).recipe
    assert recipe.makes_corpus and recipe.source["best"].best_of == "texts" and recipe.source["texts"].best_of is None
    assert recipe.data.quality is not None and recipe.data.quality.share == 0.1
    assert "best" in recipe.sources_of("text", {"text": 1.0})


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([GOOD, "source.best.path=top:web"], "source.best.path = 'top:web': is the best of web, which is no source. Name a source of documents: texts."),
        ([GOOD, "source.best.path=top:"], "source.best.path = 'top:': is the best of nothing, which is no source."),
        ([GOOD, "source.best.path=top:chats"], "source.best.path = 'top:chats': is the best of chats, and these are chats, which have no score."),
        ([GOOD, BEST, "source.finest.path=top:best"], "source.finest.path = 'top:best': is the best of best, which is itself the best of another."),
        ([GOOD, BEST, "source.other.path=top:texts"], "source.other.path = 'top:texts': is the best of texts, as best is. Leave one of the two out."),
        ([GOOD, BEST, "source.best.kind=chat"], "source.best.kind = 'chat': is not what they are: the best documents of another source are documents."),
        ([GOOD, BEST, "source.best.filter.rules=['c4']"], "source.best.filter: has no use, since the documents have passed the filter of their source."),
        ([GOOD, BEST, "source.best.files=x"], "source.best.files = 'x': changes nothing beside source.best.path = 'top:texts'."),
        ([BEST], "source.best.path = 'top:texts': needs examples of what is good, and there is no [data.quality]."),
        ([GOOD], "data.quality: moves nothing, since no source has the best documents of another. Try -o source.best.path=top:texts"),
        ([GOOD, BEST, "data.quality.share=0"], "data.quality.share = 0: must be above 0."),
        ([BEST, "data.quality.good=[]"], "data.quality.good = []: must not be empty."),
    ],
)  # fmt: skip
def test_what_can_not_hold_is_told(page: Path, overrides: list[str], line: str) -> None:
    lines = told(page, *overrides)
    assert lines[0].removeprefix("-o  ").startswith(line)
    assert len([each for each in lines if each.startswith("-o  ")]) == 1
