"""On which line of a TOML document does each key stand? `tomllib` parses, but does not tell.

The scanner walks text that `tomllib` has already accepted, so it never judges: it only counts lines.
"""

from __future__ import annotations

import re
import tomllib

from fox.recipe.keys import KeyPath

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}(?!")' r"|'''.*?'{3,5}(?!')" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]+")


def locate(text: str) -> dict[KeyPath, int]:
    """Line numbers, from 1, of every table, key and array item of a valid TOML document.

    Dotted keys, inline tables, arrays and arrays of tables are all told apart: `{("stage", 0, "mix"): 12, …}`. A table
    stands at its own header; where it has none, at the first line that names it.
    """
    return _Scanner(text).document()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.counted = 0  # characters whose line ends are in line_number
        self.line_number = 1
        self.lines: dict[KeyPath, int] = {}
        self.tables_in_array: dict[KeyPath, int] = {}

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.place < len(self.text):
            if self.text.startswith("[[", self.place):
                table = self.header(2)
            elif self.text[self.place] == "[":
                table = self.header(1)
            else:
                self.pair(table)
            self.skip(_BLANK)
        return self.lines

    def header(self, brackets: int) -> KeyPath:
        line = self.line()
        self.place += brackets
        parts = self.key()
        self.place += brackets
        table: KeyPath = ()
        for part in parts[:-1]:
            table = (*table, part)
            self.lines.setdefault(table, line)
            if table in self.tables_in_array:
                table = (*table, self.tables_in_array[table] - 1)
        table = (*table, parts[-1])
        if brackets == 1:
            self.lines[table] = line
            return table
        number = self.tables_in_array.get(table, 0)
        self.tables_in_array[table] = number + 1
        self.lines.setdefault(table, line)
        self.lines[(*table, number)] = line
        return (*table, number)

    def pair(self, table: KeyPath) -> None:
        line = self.line()
        path = table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.place += 1  # the equals sign
        self.skip(_SPACE)
        self.value(path)

    def key(self) -> list[str]:
        parts = []
        while True:
            self.skip(_SPACE)
            if self.text[self.place] in "\"'":
                parts.append(tomllib.loads(f"key = {self.take(_STRING)}")["key"])
            else:
                parts.append(self.take(_BARE_KEY))
            self.skip(_SPACE)
            if self.text[self.place] != ".":
                return parts
            self.place += 1

    def value(self, path: KeyPath) -> None:
        first = self.text[self.place]
        if first in "\"'":
            self.take(_STRING)
        elif first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        else:
            self.take(_BARE_VALUE)

    def array(self, path: KeyPath) -> None:
        self.place += 1
        number = 0
        self.skip(_BLANK)
        while self.text[self.place] != "]":
            self.lines[(*path, number)] = self.line()
            self.value((*path, number))
            number += 1
            self.skip_comma()
        self.place += 1

    def inline_table(self, path: KeyPath) -> None:
        self.place += 1
        self.skip(_BLANK)
        while self.text[self.place] != "}":
            self.pair(path)
            self.skip_comma()
        self.place += 1

    def skip_comma(self) -> None:
        self.skip(_BLANK)
        if self.text[self.place] == ",":
            self.place += 1
            self.skip(_BLANK)

    def line(self) -> int:
        self.line_number += self.text.count("\n", self.counted, self.place)
        self.counted = self.place
        return self.line_number

    def skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self.text, self.place)
        assert match
        self.place = match.end()

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.place)
        assert match, f"not TOML at character {self.place}: the caller parses first"
        self.place = match.end()
        return match.group()
