"""Files of words and addresses: what is read of them, and how a broken one is told."""

import gzip
import tracemalloc

import pytest

from fox.data.filters.lists import MAX_LINE_BYTES, ListFiles
from fox.errors import UserError

KEY = "source.web.filter.bad_words"


def parse(line: str) -> str:
    if line == "bad":
        raise ValueError("is bad")
    return line.upper()


def read(path) -> list[str]:
    return list(ListFiles(KEY, [str(path)]).entries(parse))


def test_lines_without_comments_and_space(tmp_path):
    (tmp_path / "list.txt").write_bytes("\ufeff# a comment\none\r\n\n  two words \n #x\nthree#".encode())
    assert read(tmp_path / "list.txt") == ["ONE", "TWO WORDS", "THREE#"]
    (tmp_path / "list.GZ").write_bytes(gzip.compress((tmp_path / "list.txt").read_bytes()))
    assert read(tmp_path / "list.GZ") == ["ONE", "TWO WORDS", "THREE#"]


def test_each_file_counts_once(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    files = ListFiles(KEY, [str(tmp_path / name) for name in "bab"])
    assert files.paths() == [tmp_path / "b", tmp_path / "a"]
    assert list(files.entries(parse)) == ["B", "A"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"one\nbad\n", "line 2, 'bad', is bad"),
        (b"one\n\xff\xfe\n", "line 2, .* is not UTF-8 text"),
        (b"x" * (MAX_LINE_BYTES + 1), f"line 1, .* is longer than {MAX_LINE_BYTES} bytes"),
    ],
)
def test_a_bad_line_is_told(tmp_path, content, problem):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(UserError, match=problem) as error:
        read(tmp_path / "list")
    assert error.value.problems[0].key == KEY


def test_the_longest_line_is_read(tmp_path):
    (tmp_path / "list").write_bytes(b"x" * (MAX_LINE_BYTES - 1) + b"\ny")
    assert len(read(tmp_path / "list")) == 2


@pytest.mark.parametrize(
    "content", [b"no gzip", gzip.compress(b"one\n" * 10**5)[:-20], b"\x1f\x8b\x08\x00" + bytes(50)]
)
def test_a_broken_archive_is_told(tmp_path, content):
    (tmp_path / "list.gz").write_bytes(content)
    with pytest.raises(UserError, match="can't be read: the compressed file is broken"):
        read(tmp_path / "list.gz")


def test_a_file_that_is_none_is_told(tmp_path):
    for name, problem in (
        ("none", "does not exist"),
        (".", "is a folder"),
        ("a\0b", "does not exist"),
        ("x" * 300, "can't be read: File name too long"),
    ):
        with pytest.raises(UserError, match=problem) as error:
            ListFiles(KEY, [str(tmp_path / name)]).paths()
        assert error.value.problems[0].key == KEY
        with pytest.raises(UserError, match=problem):
            read(tmp_path / name)
    with pytest.raises(UserError, match="can't be a path"):
        ListFiles(KEY, ["~nobody_at_all/x"]).paths()


def test_a_bomb_without_lines_is_not_held_in_memory(tmp_path):
    with gzip.open(tmp_path / "bomb.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"line 1, .* is longer than"):
        read(tmp_path / "bomb.gz")
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()
