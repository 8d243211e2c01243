"""Strangers' pages cost their limit, and the next page is read as if nothing had been."""

import contextlib
import os
import select
import signal
import time

import pytest

from fox.data.quarantine import BadRecord
from fox.data.web.reader import PageReader, page_reader

PAGE = "<html lang=de><title>Über Füchse</title><body><p>Der Fuchs ist klein.</p></body></html>"


@pytest.fixture(scope="module")
def reader() -> PageReader:
    return PageReader(processor_s=1.0, memory_bytes=2 * 2**30)


def is_well(reader: PageReader) -> bool:
    return reader.read(PAGE.encode()) == ("Der Fuchs ist klein.", "Über Füchse", "", "de", "")


def test_a_page_and_a_text_are_read(reader):
    assert is_well(reader)
    assert reader.read(PAGE.encode("latin-1"), "latin1").title == "Über Füchse"
    assert reader.read("Füchse\n<p>".encode(), None, is_html=False).text == "Füchse\n<p>"
    assert reader.read(b"").text == ""


def test_a_bad_page_is_told(reader):
    with pytest.raises(BadRecord, match="nested deeper"):
        reader.read(b"<div>" * 20_000)
    assert is_well(reader)


def test_a_page_that_takes_too_long_is_given_up():
    quick = PageReader(processor_s=0.05)
    with pytest.raises(BadRecord, match=r"more than 0\.05 s of a processor"):
        quick.read(b"<div class=menu><p>text <a href=x>link</a></div>" * 100_000)
    assert is_well(quick)


@pytest.mark.parametrize(
    "page",
    [
        b"<p>" + b"x" * 60_000_000,
        b"<b>" * 9_000,
        b"<div class='" + b"a-" * 1_000_000 + b"'>x</div>",
        b"<p class='" + b"menu " * 200_000 + b"'>x",
        b"<meta" + b" charset" * 500_000 + b">",
        b"<script type='application/ld+json'>" + b'"datePublished":' * 500_000,
        b"<table><tr><td>" * 9_000,
        b"<a href=x>" * 9_000 + b"x",
        b"&lt;" * 5_000_000,
        b"<" * 5_000_000,
    ],
)
def test_hostile_pages_cost_little(reader, page):
    """Whether they are read or given up; the page after them is read."""
    start = time.perf_counter()
    with contextlib.suppress(BadRecord):
        reader.read(page)
    assert is_well(reader)
    assert time.perf_counter() - start < 20


def test_a_page_that_takes_too_much_memory_is_given_up():
    small = PageReader(processor_s=20, memory_bytes=400 * 2**20)
    with pytest.raises(BadRecord, match=r"memory|ended by it|can't be parsed"):
        small.read(b"<p>text</p>" * 4_000_000)
    assert small.read(b"<p>fox</p>").text == "fox"


def test_a_worker_that_somebody_killed_costs_nothing(reader):
    assert is_well(reader)
    assert reader._worker
    os.kill(reader._worker.pid, signal.SIGKILL)
    assert is_well(reader)


def test_an_interrupted_answer_is_not_taken_for_the_next_page(reader, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    assert is_well(reader)
    with monkeypatch.context() as patched:
        patched.setattr(select, "select", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reader.read(b"<p>another page</p>")
    assert is_well(reader)


def test_a_worker_that_stands_still_is_ended(monkeypatch):
    monkeypatch.setattr("fox.data.web.reader.MAX_WAIT_S", 0.2)
    reader = PageReader()
    assert is_well(reader)
    assert reader._worker
    os.kill(reader._worker.pid, signal.SIGSTOP)
    assert is_well(reader)


def test_no_module_of_the_folder_that_we_are_in_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('hostile')")
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "__init__.py").write_text("raise SystemExit('hostile')")
    monkeypatch.chdir(tmp_path)
    assert is_well(PageReader())


def test_a_fork_has_a_reader_of_its_own():
    mine = page_reader()
    assert page_reader() is mine
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, b"1" if page_reader() is mine else b"0")
        os._exit(0)
    assert os.read(read, 1) == b"0"
    os.wait()
    os.close(read)
    os.close(write)
