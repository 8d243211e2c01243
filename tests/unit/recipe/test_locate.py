"""The locator against a writer of TOML that notes the line of each key as it writes it, and against tomllib."""

from __future__ import annotations

import time
import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fox.recipe.keys import KeyPath, dotted, key_path
from fox.recipe.locate import locate

SCALARS = [
    "1", "0x1F", "1_000.5e-3", "nan", "-inf", "true", "1979-05-27", "1979-05-27 07:32:00Z", "1979-05-27T07:32:00.5+01:00",
    "07:32:00", '""', "''", '"# = [ ] { } , \\" \\\\"', "'# = [[x]] {,} \"\\'", '"""a"""', "''''q'''", '""""q"" \\""""""',
    '""""""', "''''''", '"""one\n# [two]\nthree = 3 \\"""\n"""', "'''\n[a]\n''b = \\''''", '"""\\\n   folded \\\n  x"""',
]  # fmt: skip
ODD_ENDINGS = ["", " x", ".", "#", "=", "]", '"', "'", "\\", "ä", "😀", "[0]"]
GAPS = ["", " ", "\t "]
BLANKS = ["", "\n", "\n\n", "# [no.table] key = 1, ]}\n", "  \n\t# \"\"\" '''\n"]


class Writer:
    """Writes a document piece by piece; every key is new, and its line is noted when it is written."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[KeyPath, int] = {}
        self.names = 0

    def pick(self, options: list[Any]) -> Any:
        return self.draw(st.sampled_from(options))

    def many(self, most: int) -> range:
        return range(self.draw(st.integers(0, most)))

    def note(self, path: KeyPath, again: bool = True) -> None:
        if again or path not in self.lines:
            self.lines[path] = self.text.count("\n") + 1

    def name(self) -> tuple[str, str]:
        """A new key, and one of its spellings."""
        self.names += 1
        name = f"key-{self.names}" + self.pick(ODD_ENDINGS)
        spellings = ['"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"']
        spellings.append(spellings[0].replace("key", "k\\u0065y"))
        if "'" not in name:
            spellings.append(f"'{name}'")
        if name.isascii() and name.replace("-", "").isalnum():
            spellings.append(name)
        return name, self.pick(spellings)

    def document(self) -> None:
        self.table((), [], depth=0)

    def table(self, path: KeyPath, header: list[str], depth: int) -> None:
        self.text += self.pick(BLANKS)
        for _ in self.many(2):
            self.text += self.pick(GAPS)
            self.pairs(path)
            self.text += self.pick(["\n", "  # a = 1\n"]) + self.pick(BLANKS)
        for _ in self.many(3 if depth < 2 else 0):
            self.child(path, header, depth)

    def child(self, path: KeyPath, header: list[str], depth: int) -> None:
        name, spelling = self.name()
        inner, spelt = (*path, name), [*header, spelling]
        kind = self.pick(["table", "array", "implied", "implied, then given"])
        if kind == "table":
            self.header(inner, spelt, "[", "]")
            self.table(inner, spelt, depth + 1)
        elif kind == "array":
            for number in range(self.draw(st.integers(1, 3))):
                self.note(inner, again=False)
                self.header((*inner, number), spelt, "[[", "]]")
                self.table((*inner, number), spelt, depth + 1)
        else:
            last, last_spelling = self.name()
            self.note(inner)
            self.header((*inner, last), [*spelt, last_spelling], "[", "]")
            self.table((*inner, last), [*spelt, last_spelling], depth + 1)
            if kind == "implied, then given":
                self.header(inner, spelt, "[", "]")
                self.table(inner, spelt, depth + 1)

    def header(self, path: KeyPath, spelt: list[str], before: str, after: str) -> None:
        self.note(path)
        dot = f"{self.pick(GAPS)}.{self.pick(GAPS)}"
        self.text += f"{before}{self.pick(GAPS)}{dot.join(spelt)}{self.pick(GAPS)}{after}{self.pick(['', ' # ]'])}\n"

    def pairs(self, path: KeyPath) -> None:
        """One key, or two dotted ones that share their first part."""
        name, spelling = self.name()
        if self.draw(st.booleans()):
            self.pair((*path, name), spelling, 0)
            return
        self.note((*path, name))
        for number in range(2):
            last, last_spelling = self.name()
            self.pair((*path, name, last), f"{spelling}{self.pick(GAPS)}.{self.pick(GAPS)}{last_spelling}", 0)
            self.text += "\n" if number == 0 else ""

    def pair(self, path: KeyPath, spelling: str, depth: int) -> None:
        self.note(path)
        self.text += f"{spelling}{self.pick(GAPS)}={self.pick(GAPS)}"
        self.value(path, depth)

    def value(self, path: KeyPath, depth: int) -> None:
        kind = self.pick(["scalar", "scalar", "array", "table"] if depth < 3 else ["scalar"])
        if kind == "scalar":
            self.text += self.pick(SCALARS)
        elif kind == "array":
            self.text += "[" + self.pick(BLANKS)
            count = self.draw(st.integers(0, 3))
            for number in range(count):
                self.note((*path, number))
                self.value((*path, number), depth + 1)
                self.text += self.pick(BLANKS)
                if number < count - 1 or self.draw(st.booleans()):
                    self.text += "," + self.pick(BLANKS)
            self.text += "]"
        else:
            self.text += "{" + self.pick(GAPS)
            for number in self.many(3):
                name, spelling = self.name()
                self.text += f"{self.pick(GAPS)},{self.pick(GAPS)}" if number else ""
                self.pair((*path, name), spelling, depth + 1)
            self.text += self.pick(GAPS) + "}"


@st.composite
def documents(draw: Any) -> tuple[str, dict[KeyPath, int]]:
    writer = Writer(draw)
    writer.document()
    text = writer.text.rstrip("\n") if draw(st.booleans()) else writer.text
    return text.replace("\n", draw(st.sampled_from(["\n", "\r\n"]))), writer.lines


def paths(value: object, path: KeyPath = ()) -> set[KeyPath]:
    """Every key path that tomllib yields."""
    found = {path} if path else set()
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found.union(*(paths(item, (*path, part)) for part, item in parts))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(documents())
def test_every_key_that_tomllib_yields_is_on_the_line_where_it_was_written(
    document: tuple[str, dict[KeyPath, int]],
) -> None:
    text, written = document
    located = locate(text)
    assert located.keys() == paths(tomllib.loads(text))
    assert located == written
    lines = text.split("\n")
    for key, line in located.items():
        if isinstance(key[-1], str):
            number = key[-1].removeprefix("key-").rstrip("".join(ODD_ENDINGS))
            assert f"y-{number}" in lines[line - 1], (key, line)


PAGE = """\
title = 'x' # [not.a.table]

[stage.one]
mix = { text = 1, "a.b" = { c = [
  1, # one, two
  { d = 2 },
] }, e = 3 }
[stage]
note = \"\"\"
[stage.two]
note = 1 \\"\"\"
\"\"\"
[[run]]
[[run]]
name = 1979-05-27 07:32:00
[run.sub]
x.y = 1
x.z = 2
[[run.deep]]
[[run.deep]]
"""


def test_a_page_of_everything_line_by_line() -> None:
    assert locate(PAGE) == {
        ("title",): 1,
        ("stage",): 8,  # its own header, though line 3 names it first
        ("stage", "one"): 3,
        ("stage", "one", "mix"): 4,
        ("stage", "one", "mix", "text"): 4,
        ("stage", "one", "mix", "a.b"): 4,
        ("stage", "one", "mix", "a.b", "c"): 4,
        ("stage", "one", "mix", "a.b", "c", 0): 5,
        ("stage", "one", "mix", "a.b", "c", 1): 6,
        ("stage", "one", "mix", "a.b", "c", 1, "d"): 6,
        ("stage", "one", "mix", "e"): 7,
        ("stage", "note"): 9,
        ("run",): 13,
        ("run", 0): 13,
        ("run", 1): 14,
        ("run", 1, "name"): 15,
        ("run", 1, "sub"): 16,
        ("run", 1, "sub", "x"): 17,
        ("run", 1, "sub", "x", "y"): 17,
        ("run", 1, "sub", "x", "z"): 18,
        ("run", 1, "deep"): 19,
        ("run", 1, "deep", 0): 19,
        ("run", 1, "deep", 1): 20,
    }


@pytest.mark.parametrize("text", ["", "\n", "# only this", "\r\n \t\r\n"])
def test_a_page_of_nothing(text: str) -> None:
    assert locate(text) == {}


def test_windows_lines_count_as_other_lines_do() -> None:
    assert locate(PAGE.replace("\n", "\r\n")) == locate(PAGE)


@pytest.mark.parametrize(
    "page",
    [
        "".join(f"k{i} = {{ a = 1, b = [1, 2, 3] }}\n" for i in range(33_000)),
        "".join(f"[[run]]\nx = {i}\n" for i in range(60_000)),
        "x = [\n" + "  1,\n" * 200_000 + "]\n",
        'x = """' + '\\"" \n' * 200_000 + '"""\n',
    ],
    ids=["pairs", "tables", "array", "string"],
)
def test_a_megabyte_takes_about_as_long_as_tomllib_takes(page: str) -> None:
    """The line of each key was once counted from the top of the page: 33 seconds for the first of these."""
    assert len(page) > 900_000
    begin = time.process_time()
    tomllib.loads(page)
    parsed = time.process_time() - begin
    locate(page)
    located = time.process_time() - begin - parsed
    assert located < 10 * parsed + 0.5


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=4))
def test_a_key_path_is_written_so_that_it_reads_back(key: list[str]) -> None:
    assert key_path(dotted(tuple(key))) == tuple(key)


def test_a_key_path_is_written_as_in_a_recipe() -> None:
    assert dotted(("stage", "one", "tokens")) == "stage.one.tokens"
    assert dotted(("eval", "prompts", 1)) == "eval.prompts[1]"
    assert dotted(("source", "v1.5", "path")) == 'source."v1.5".path'
    assert dotted(("", "a\n\x1b[31m\u202e")) == '""."a\\U0000000a\\U0000001b[31m\\U0000202e"'
