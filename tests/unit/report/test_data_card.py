"""The data card tells what is on record, adds up, and lets nothing of a stranger's become markup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fox.errors import UserError
from fox.report.data_card import write_data_card
from tests.unit.report.test_funnel import HOSTILE, funnel_of, run_with


def card_of(folder: Path) -> str:
    run_with(folder, funnel_of([f"{number} {HOSTILE}" for number in range(40)]))
    source = {
        "path": "/home/jane/web",
        "license": "",
        "filter": {"rules": ["gopher"], "bad_words": ["/home/jane/words.txt"]},
    }
    recipe = {
        "name": "web|corpus",
        "source": {HOSTILE: source},
        "data": {"mask_personal": ["email"], "decontaminate": ["/home/jane/eval/*"], "duplicates": {"near": True}},
    }
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe, "rows": []}))
    return write_data_card(folder, None).read_text()


def test_what_is_on_record_is_told_and_nothing_of_it_is_markup(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    assert "20 documents with" in card and "of 40 that were read" in card and "# web\\|corpus" in card
    body = card.partition("\n---\n")[2].replace("<details>", "").replace("<summary>", "").partition("```")[0]
    assert "<script" not in body.replace("\\<script", "") and "\u202e" not in body
    assert "| CC0 | 20 |" in card and 'rules \\["gopher"\\]' in card
    assert "Personal data are replaced by examples: email 12." in card
    assert "/home/jane" not in card and "words.txt" in card
    head = card.split("\n---\n")[0]
    assert "n<1K" in head and "corpus/" in head


def test_a_run_without_a_corpus_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no corpus"):
        write_data_card(tmp_path, None)
