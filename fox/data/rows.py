"""A file, whatever its format, is read as rows: one by one, in bounded memory, and as if a stranger had made it.

A row that is bad alone is yielded as a BadRecord, and reading goes on; a file that can't be read on raises one.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from fox.data.files import SourceFile
from fox.data.html import main_text
from fox.data.json_stream import members, not_json
from fox.data.parquet import parquet_rows
from fox.data.quarantine import MAX_RECORD_BYTES, BadRecord
from fox.errors import UserError


class Row(NamedTuple):
    place: str
    value: object
    """What the row holds, or a BadRecord."""


def rows_of(file: SourceFile, field: str) -> Iterator[Row]:
    """The rows of a file. A page is one row, with its text under `field`; of a Parquet file only `field` is read."""
    try:
        if file.suffix == ".parquet":
            for number, value in parquet_rows(file.path, field):
                yield Row(f"{file.label} row {number}", value)
            return
        with _opened(file.path, file.suffix.endswith(".gz")) as stream:
            match file.suffix.removesuffix(".gz"):
                case ".jsonl":
                    yield from _lines(stream, file.label)
                case ".json":
                    for name, value in members(stream):
                        yield Row(f"{file.label} {name}", value)
                case ".html" | ".htm":
                    yield Row(file.label, {field: main_text(_whole(stream))})
                case _:
                    yield Row(file.label, {field: _whole(stream)})
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadRecord("gzip is cut short or damaged", str(error)) from None
    except UnicodeDecodeError as error:
        raise BadRecord("is not UTF-8", error.object[max(0, error.start - 20) :]) from None
    except OSError as error:
        raise BadRecord(f"can't be read: {error.strerror or type(error).__name__}", str(error)) from None


def require_readers(name: str, files: Iterable[SourceFile]) -> None:
    """Raise UserError, before any work, where a library that one of the files needs is not installed."""
    for suffix in sorted({file.suffix.removesuffix(".gz") for file in files}):
        try:
            match suffix:
                case ".parquet":
                    import pyarrow.parquet  # noqa: F401
                case ".html" | ".htm":
                    import resiliparse.extract.html2text  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"source.{name}.files",
                problem=f"{suffix} files need {error.name or 'a library'}, which is not installed",
                mend="pip install 'foxlm[data]'",
            ) from None


def _opened(path: Path, zipped: bool) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb")


def _whole(stream: IO[bytes]) -> str:
    """All the text, with line ends as in any Python text file."""
    content = stream.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise BadRecord(TOO_LONG, content[:1000])
    text = content.decode("utf-8-sig")
    return io.IncrementalNewlineDecoder(None, translate=True).decode(text, final=True) if "\r" in text else text


def _lines(stream: IO[bytes], label: str) -> Iterator[Row]:
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        place = f"{label}:{number}"
        if len(line) > MAX_RECORD_BYTES:
            yield Row(place, BadRecord(TOO_LONG, line[:1000]))
            while line and not line.endswith(b"\n"):
                line = stream.readline(2**20)
        elif line.strip():
            yield Row(place, _from_json(line))


def _from_json(line: bytes) -> object:
    try:
        return json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError:
        return BadRecord("is not UTF-8", line)
    except (ValueError, RecursionError) as error:
        return not_json(error, line)


TOO_LONG = f"is longer than {MAX_RECORD_BYTES // 2**20} MiB"
