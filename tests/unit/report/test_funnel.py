"""The page of a corpus: it adds up, and what strangers wrote stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fox.data.corpus.funnel import SAMPLES, Funnel
from fox.data.document import About, Document
from fox.errors import Failure, UserError
from fox.report.funnel import write_funnel

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\u202e"


def document(text: str) -> Document:
    return Document(
        "web", f"a.warc record {text[:9]}", text=text, about=About(url=f"https://a.example/{HOSTILE}", license="CC0")
    )


def run_with(folder: Path, funnel: Funnel) -> Path:
    (folder / "corpus").mkdir()
    (folder / "manifests").mkdir()
    (folder / "corpus/funnel.json").write_text(json.dumps({HOSTILE: funnel.as_dict()}))
    reading = {"bad": {HOSTILE: 3}, "left_out": {}, "masked": {"email": 12}}
    seconds = {"read": {"read": 90.0, f"filter {HOSTILE}": 29.0}, "verify": {"compare texts": 1.0}}
    facts = {"sources": {HOSTILE: {"reading": reading}}, "seconds": seconds}
    (folder / "manifests/corpus.json").write_text(json.dumps({"facts": facts}))
    return folder


def funnel_of(texts: list[str]) -> Funnel:
    funnel = Funnel()
    for number, text in enumerate(texts):
        funnel.read.add(1, len(text.encode()))
        if number % 2:
            funnel.drop(document(text), "gopher", f"too short {HOSTILE}")
        else:
            funnel.keep(document(text))
    return funnel


def test_the_page_adds_up_and_escapes_what_strangers_wrote(tmp_path: Path) -> None:
    page = write_funnel(run_with(tmp_path, funnel_of([f"{number} {HOSTILE}" for number in range(40)]))).read_text()
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;alert(1)") >= 3
    figures = re.findall(r'class="left">([\d,]+)', page)
    assert figures == ["40", "20", "20"]
    assert page.count('class="dropped"') == SAMPLES
    assert "default-src 'none'" in page


def test_the_page_tells_where_the_time_went(tmp_path: Path) -> None:
    page = write_funnel(run_with(tmp_path, funnel_of(["a", "b"]))).read_text().replace("\N{NO-BREAK SPACE}", " ")
    table = page.partition("Where the time went")[2]
    rows = re.findall(r"<td>([^<]*)</td><td>([^<]*)</td></tr>", table)
    assert rows == [("1 min 30 s", "75 %"), ("29 s", "24 %"), ("1.0 s", "1 %")]
    assert table.index("filter") < table.index("compare texts")


def test_parts_make_the_same_whole_in_any_order() -> None:
    texts = [f"{number} is a number" for number in range(60)]
    whole = funnel_of(texts).as_dict()
    parts = [funnel_of(texts[at : at + 10]).as_dict() for at in range(0, 60, 10)]
    for order in (parts, parts[::-1]):
        together = Funnel()
        for part in order:
            together.add(json.loads(json.dumps(part)))
        assert together.as_dict() == whole


def test_a_run_without_a_corpus_and_a_damaged_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no corpus"):
        write_funnel(tmp_path)
    run = run_with(tmp_path, funnel_of(["a", "b"]))
    (run / "corpus/funnel.json").write_text('{"web": {"read": 3}}')
    with pytest.raises(Failure, match=r"funnel\.json"):
        write_funnel(run)


def test_what_was_moved_is_neither_dropped_nor_read_twice_and_the_ends_are_shown(tmp_path: Path) -> None:
    funnel, best = Funnel(), Funnel()
    for number in range(20):
        funnel.read.add(1, 10)
        if number < 5:
            funnel.move(document(f"{number}"), "best")
            best.arrive(document(f"{number}"))
        else:
            funnel.keep(document(f"{number}"))
    run = run_with(tmp_path, funnel)
    (run / "corpus/funnel.json").write_text(json.dumps({"web": funnel.as_dict(), "best": best.as_dict()}))
    sample = {"score": 1.5, "place": "a.txt", "url": HOSTILE, "text": HOSTILE}
    ranked = {"best": "best", "documents": 20, "threshold": 1.0, "lowest": -2.0, "highest": 2.0, "bars": [8, 6, 4, 2]}
    learnt = {"held_out": {"auc": 0.987, "accuracy": 0.5, "examples": 30}, "examples": {"good": 300, "ordinary": 9}}
    sources = {"web": {**ranked, "first": [sample], "last": [{**sample, "score": -2.0}]}}
    (run / "corpus/quality.json").write_text(json.dumps({**learnt, "sources": sources}))
    page = write_funnel(run).read_text()
    assert "<script" not in page and "<img" not in page and page.count("&lt;script&gt;alert(1)") >= 4
    assert re.findall(r"<div>(moved to best|read|kept)</div>", page) == [
        "read",
        "moved to best",
        "kept",
        "read",
        "kept",
    ]
    assert re.findall(r'class="left">([\d,]+)', page) == ["20", "15", "15", "5", "5"]
    assert re.findall(r'class="figure">([\d,.]+)', page)[0] == "20" and "of 20 read" in page
    assert page.count('<i class="moved"') == 1 and page.count('style="height: 100.0%"') == 1
    assert "98.7%" in page and "from 1.00 on they were moved to best" in page
    (run / "corpus/quality.json").write_text("[]")
    with pytest.raises(Failure, match=r"quality\.json"):
        write_funnel(run)
