"""How well vocabularies fit a text is counted right and told right, whatever files and labels are called; and a cut one is a tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from fox.cli import app
from fox.errors import UserError
from fox.runs.vocabulary import cut, open_tokenizer, report
from fox.tokenizer import Tokenizer
from fox.tokenizer.fit import fit_of, unused_entries
from fox.tokenizer.train import train_tokenizer

TEXTS = ["The fox ran 12 times.", "naïve café\n", "日本語 🦊"]


@pytest.fixture
def folder(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tiny_tokenizer.save(tmp_path / "run" / "tokenizer")
    return tmp_path / "run"


def test_a_fit_is_counted_by_hand(tiny_tokenizer: Tokenizer) -> None:
    fit = fit_of(tiny_tokenizer, TEXTS)
    ids = [token for text in TEXTS for token in tiny_tokenizer.encode(text)]
    assert (fit.documents, fit.bytes, fit.words, fit.tokens) == (3, sum(len(text.encode()) for text in TEXTS), 8, len(ids))  # fmt: skip
    assert np.flatnonzero(fit.used).tolist() == sorted(set(ids))
    assert fit.bytes_per_token == fit.bytes / len(ids)
    assert fit.tokens_per_word == len(ids) / 8
    assert unused_entries(tiny_tokenizer, [fit]) == 400 - 9 - len(set(ids)), "special tokens are in no text"
    assert unused_entries(tiny_tokenizer, [fit, fit_of(tiny_tokenizer, ["zebra"])]) < unused_entries(tiny_tokenizer, [fit])  # fmt: skip
    assert fit_of(tiny_tokenizer, []).bytes_per_token == fit_of(tiny_tokenizer, ["!"]).tokens_per_word - 1 == 0


def test_texts_of_one_label_are_counted_together(
    tiny_tokenizer: Tokenizer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.md").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
    named = [f"mine={tmp_path / f'{number}.md'}" for number in range(3)]
    report([folder], [*named, str(tmp_path / "rows.jsonl")], None, Console(quiet=True))
    whole = fit_of(tiny_tokenizer, TEXTS)
    told = re.findall(r"^(\S+) +(\d+) +(\d+) +([\d.]+) +([\d.]+)", capsys.readouterr().out, re.MULTILINE)
    figures = (str(whole.bytes), str(whole.tokens), f"{whole.bytes_per_token:.3f}", f"{whole.tokens_per_word:.3f}")
    assert told == [("mine", *figures), ("rows.jsonl", *figures)]


def test_the_page_escapes_what_it_is_told_and_marks_the_better_one(folder: Path, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>[red]"
    (tmp_path / "text=.md").write_text(TEXTS[0] * 5)
    small = tmp_path / "<img src=x>"
    train_tokenizer(iter(["a"]), 265, 64).save(small)
    words = [
        "tokenizer", "report", str(folder), str(small), "--text", f"{hostile}={tmp_path / 'text=.md'}", "--text", str(tmp_path / "text=.md"),
        "--html", str(tmp_path / "page.html"),
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;[red]" in page and "text=.md" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched"
    rows = re.findall(r"B</td><td>(.*?)</td><td>(.*?)</td></tr>", page.split("Bytes a token")[1])
    assert rows and all(ours.startswith("<b>") and not theirs.startswith("<b>") for ours, theirs in rows)
    assert "[red]" in done.output, "nor does a terminal take it for a colour"


@pytest.mark.parametrize(
    ("texts", "problem"),
    [([], "--text: is missing"), (["no such file"], "no such file or folder"), (["a=no such"], "no such file")],
)
def test_texts_that_are_not_there(folder: Path, texts: list[str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        report([folder], texts, None, Console(quiet=True))


def test_a_cut_is_written_and_read(tiny_tokenizer: Tokenizer, folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["tokenizer", "cut", str(folder), "--entries", "300", "--out", str(tmp_path / "cut")])  # fmt: skip
    assert done.exit_code == 0 and "300 entries" in done.output
    made = open_tokenizer(tmp_path / "cut")
    assert made.vocab_size == 300
    assert made.decode(made.encode(TEXTS[2])) == TEXTS[2]
    assert made.config["chat_template"] == tiny_tokenizer.config["chat_template"]
    with pytest.raises(UserError, match=r"--out .*is there already"):
        cut(folder, 299, tmp_path / "cut")
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        cut(tmp_path, 299, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_commands_of_fox_tokenizer(tmp_path: Path) -> None:
    terminal = CliRunner(env={"COLUMNS": "60", "TERMINAL_WIDTH": "60"})
    for words in (["tokenizer", "none.toml"], ["tokenizer", "train", "none.toml"]):
        refused = terminal.invoke(app, words)
        assert isinstance(refused.exception, UserError) and "none.toml" in str(refused.exception)
    assert terminal.invoke(app, ["tokenizer", "cut", str(tmp_path)]).exit_code == 2
    helped = terminal.invoke(app, ["tokenizer", "--help"])
    assert {"train", "cut", "report"} <= set(re.findall(r"│ (\w+) ", helped.output))
