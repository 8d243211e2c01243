"""Files of tables whose rows lie in numbered parts, so that whoever needs some parts reads these alone.

A file is a row of runs and a trailer. A run holds rows of one table, in the order of their parts, behind a directory: where each part ends, and the
CRC-32 of its bytes. What was cut or changed is noticed when it is read: the trailer has a CRC of its own, and says how long the file is. Runs are written as they come, so that a writer needs memory for one of them. Numbers are little-endian.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fox.artifacts import file_made_whole
from fox.errors import Failure

_MAGIC = b"FoxParts"
_DIRECTORY = np.dtype([("end", "<u8"), ("crc", "<u4")])


class PartedWriter:
    """Writes such a file; `parted_file` makes one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tables: dict[str, dict[str, Any]] = {}

    def add(self, table: str, rows: np.ndarray, parts: np.ndarray, num_parts: int) -> None:
        """Add a run of rows. `parts` has the part of each row, below `num_parts` and in order."""
        head = self._tables.setdefault(table, {"row_bytes": rows.itemsize, "parts": num_parts, "rows": 0, "runs": []})
        directory = np.zeros(num_parts, dtype=_DIRECTORY)
        directory["end"] = np.searchsorted(parts, np.arange(num_parts), side="right")
        raw = memoryview(np.ascontiguousarray(rows).view(np.uint8).data)
        for part, first, end in _filled(directory["end"]):
            directory["crc"][part] = zlib.crc32(raw[first * rows.itemsize : end * rows.itemsize])
        head["runs"].append([self._file.tell(), zlib.crc32(directory.tobytes())])
        head["rows"] += rows.size
        self._file.write(directory.tobytes())
        self._file.write(raw)

    def close(self, about: dict[str, Any]) -> None:
        """Write the trailer, with what the file says about itself."""
        trailer = json.dumps({"about": about, "bytes": self._file.tell(), "tables": self._tables}).encode()
        self._file.write(trailer)
        self._file.write(len(trailer).to_bytes(8, "little") + zlib.crc32(trailer).to_bytes(4, "little") + _MAGIC)


@contextlib.contextmanager
def parted_file(path: Path, about: dict[str, Any]) -> Iterator[PartedWriter]:
    """A new file, which takes its name once the block has ended well and it says this `about` itself."""
    with file_made_whole(path) as partial, partial.open("wb") as file:
        writer = PartedWriter(file)
        yield writer
        writer.close(about)


class PartedFile:
    """Such a file, to read. Rows are views of the mapped file: the system reads what is looked at, and takes the memory back as it likes."""

    def __init__(self, path: Path) -> None:
        """Raises Failure where the file can't be read, is cut or damaged."""
        self.path = path
        try:
            self._bytes = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        except OSError as error:
            raise Failure(f"{path}: can't be read ({error.strerror}).") from None
        ending = len(_MAGIC) + 12
        tail = self._bytes[-ending:].tobytes()
        size = int.from_bytes(tail[:8], "little")
        if tail[12:] != _MAGIC:
            raise self._damaged()
        trailer = self._bytes[max(0, self._bytes.size - ending - size) : self._bytes.size - ending].tobytes()
        self.crc = zlib.crc32(trailer)
        """Of the trailer, and so of all that the file holds."""
        if self.crc != int.from_bytes(tail[8:12], "little"):
            raise self._damaged()
        content = json.loads(trailer)
        if content["bytes"] + size + ending != self._bytes.size:
            raise self._damaged()
        self.about: dict[str, Any] = content["about"]
        self._tables: dict[str, dict[str, Any]] = content["tables"]

    def bytes_of(self, table: str) -> int:
        """How many bytes all rows of a table take."""
        head = self._tables.get(table)
        return head["rows"] * head["row_bytes"] if head else 0

    def read(self, table: str, kind: np.dtype, first: int, end: int) -> list[np.ndarray]:
        """The rows of the parts from `first` up to, not including, `end`: an array for each run that has any. Raises Failure where they are damaged."""
        head = self._tables.get(table)
        if head is None:
            return []
        end = min(end, head["parts"])
        if head["row_bytes"] != kind.itemsize:
            raise self._damaged()
        runs = (self._rows(start, head["parts"], kind, first, end) for start, _ in head["runs"]) if first < end else ()
        return [rows for rows in runs if rows.size]

    def _rows(self, start: int, num_parts: int, kind: np.dtype, first: int, end: int) -> np.ndarray:
        # Only these parts' entries are read, for there may be many files with long directories. A damaged end moves a part's rows or its
        # neighbour's, whose CRC then tells.
        rows_at = start + num_parts * _DIRECTORY.itemsize
        before = max(0, first - 1)
        entries = self._bytes[start + before * _DIRECTORY.itemsize : start + end * _DIRECTORY.itemsize].view(_DIRECTORY)
        ends, crcs = entries["end"][first - before :], entries["crc"][first - before :]
        begin = int(entries["end"][0]) if first else 0
        for part, low, high in _filled(ends, begin):
            if zlib.crc32(self._raw(rows_at, low, high, kind).data) != crcs[part]:
                raise self._damaged()
        return self._raw(rows_at, begin, int(ends[-1]), kind).view(kind)

    def _raw(self, rows_at: int, low: int, high: int, kind: np.dtype) -> np.ndarray:
        return self._bytes[rows_at + low * kind.itemsize : rows_at + high * kind.itemsize]

    def _damaged(self) -> Failure:
        return Failure(f"{self.path}: is cut short or damaged. Remove it and run the step that makes it again.")


def content_of(files: Sequence[PartedFile]) -> int:
    """A number of all that these files hold, for what is made from them to tell."""
    return zlib.crc32(b"".join(file.crc.to_bytes(4, "little") for file in files))


def is_made(path: Path, about: dict[str, Any]) -> bool:
    """Whether a file is there that says just this of itself. Raises Failure where it is damaged."""
    return path.exists() and PartedFile(path).about == about


def files_of_one_making(path_of: Callable[[int], Path], mend: str) -> list[PartedFile]:
    """The files 0, 1, 2, ... of which each says how many they are and that all are made from the same. Raises Failure where they do not."""
    files: list[PartedFile] = []
    while not files or len(files) < files[0].about["files"]:
        path = path_of(len(files))
        if not path.exists():
            raise Failure(f"{path}: is missing. {mend}")
        files.append(PartedFile(path))
        if files[-1].about != files[0].about:
            raise Failure(f"{path}: was made from something else than {files[0].path.name} beside it. {mend}")
    return files


def _filled(ends: np.ndarray, begin: int = 0) -> Iterator[tuple[int, int, int]]:
    """(part, its first row, the row behind its last) of each part that has rows; the first one's begin at `begin`."""
    starts = np.concatenate((np.array([begin], dtype=ends.dtype), ends[:-1]))
    for part in np.flatnonzero(ends != starts):
        yield int(part), int(starts[part]), int(ends[part])
