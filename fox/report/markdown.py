"""Words, tables and code of a Markdown page, whatever the words hold: names, prompts and values are other people's text."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from fox.report.tables import Table

_SYNTAX = re.compile(r"[\\`*_\[\]<>|~#&$!@{}]|^[-+]|^\d+(?=[.)](?: |$))")
_FENCE = re.compile("`{3,}")


_PATHS = ("path", "url", "start_from", "decontaminate", "bad_words", "blocked_urls", "setup", "good", "bad")
"""The keys of a recipe under which there may be paths of the machine."""


def words(text: object) -> str:
    """Text on one line that nothing in it can turn into markup: neither Markdown's nor HTML's."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(text)).split())
    return _SYNTAX.sub(lambda found: _escaped(found.group()), line)


def link(address: str) -> str:
    """An address of the web that can be followed; anything else is text, and of a path on this machine the last part only."""
    if re.fullmatch(r"https?://[!-~]+", address):
        return f"<{urllib.parse.quote(address, safe=':/?#@!$&()*+,;=%~-._')}>"
    return words(shown_path(address))


def shown_path(path: str) -> str:
    """A path as it may be told to others: one from the machine's root, or of a named home, is cut to its last part."""
    path = path.removeprefix("file:")
    is_local = path.startswith(("/", "\\")) or PureWindowsPath(path).drive or re.match("~[^/]", path)
    return last_part(path) if is_local else path


def last_part(path: str) -> str:
    """The name of a file or folder, without the folders that it is in."""
    return (PureWindowsPath(path) if "\\" in path else PurePosixPath(path)).name or path.strip("/\\")


def table(made: Table) -> str:
    """Rows of words and numbers. Cells are escaped."""
    cells = [[words(cell) for cell in row] for row in (made.head, *made.rows)]
    return raw_table(cells[0], cells[1:], made.text_columns)


def raw_table(head: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """The same of cells that are Markdown already."""
    rule = ["---" if column < text_columns else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def code(text: str, language: str = "") -> str:
    """A block of code, in a fence that is longer than any in it."""
    fence = "`" * max([3, *(len(found) + 1 for found in _FENCE.findall(text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def folded(title: str, content: str) -> str:
    """Content that is shown when somebody asks for it. `title` is our own words."""
    return f"<details>\n<summary>{title}</summary>\n\n{content}\n\n</details>"


def without_local_paths(value: Any) -> Any:
    """A recipe's paths and addresses as `shown_path` has them, however deep."""
    if isinstance(value, dict):
        return {key: _shown(item) if key in _PATHS else without_local_paths(item) for key, item in value.items()}
    return value


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return shown_path(value) if isinstance(value, str) else value


def _escaped(syntax: str) -> str:
    return f"{syntax}\\" if syntax.isdigit() else f"\\{syntax}"


def hashes(digests: Mapping[str, str], title: str) -> list[str]:
    """A folded table of names and their SHA-256; nothing where there are none."""
    rows = [[shown_path(name), digest] for name, digest in digests.items()]
    return [folded(title, table(Table(["", "SHA-256"], rows, text_columns=2)))] if rows else []
