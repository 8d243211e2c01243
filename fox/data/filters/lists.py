"""Lists that a filter names in files: one entry a line, `#` begins a comment. They may have millions of lines, and are never held as a whole."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fox.data.quarantine import excerpt
from fox.errors import UserError

MAX_LINE_BYTES = 8192
"""What is longer is no list of words or addresses, whatever it was named as."""

_FORM = "It has one entry a line, as UTF-8 text, also compressed as .gz; # begins a comment."


class ListFiles(NamedTuple):
    """The files under one key of a source's filter, as the recipe has them."""

    key: str
    names: list[str]

    def paths(self) -> list[Path]:
        """Each file once. Raises UserError where one can't be read."""
        return list(dict.fromkeys(self._path(name) for name in self.names))

    def entries(self, parse: Callable[[str], str]) -> Iterator[str]:
        """What `parse` makes of each line that has something; it raises ValueError with what is wrong with one. Raises UserError."""
        for name in dict.fromkeys(self.names):
            try:
                path = self._path(name)
                with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
                    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                        try:
                            if entry := _entry(line, first=number == 1):
                                yield parse(entry)
                        except ValueError as error:
                            problem = f"line {number}, {excerpt(line.strip())!r}, {error}"
                            raise UserError(self.key, name, problem=problem, mend=f"Mend the line. {_FORM}") from None
            except (OSError, EOFError, zlib.error) as error:
                raise self._unreadable(name, error) from None

    def _path(self, name: str) -> Path:
        try:
            path = Path(name).expanduser()
            if path.is_file():
                path.open("rb").close()
                return path
            problem = "is a folder" if path.is_dir() else "does not exist"
        except OSError as error:
            raise self._unreadable(name, error) from None
        except RuntimeError as error:  # ~ of an unknown user
            problem = f"can't be a path: {error}"
        raise UserError(self.key, name, problem=problem, mend=f"Name a file. {_FORM}")

    def _unreadable(self, name: str, error: Exception) -> UserError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the compressed file is broken"
        return UserError(self.key, name, problem=f"can't be read: {reason}", mend="Mend the file, or name another.")


def _entry(line: bytes, *, first: bool) -> str:
    """What a line says; empty where that is nothing. Raises ValueError."""
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    return "" if text.startswith("#") else text
