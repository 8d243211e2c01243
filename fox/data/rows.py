"""A file, whatever its format, is read as rows: one by one, in bounded memory, and as if a stranger had made it.

A row that is bad alone is yielded as a BadRecord, and reading goes on; a file that can't be read on raises one.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple, cast

from fox.data.document import About
from fox.data.files import ARCHIVES, SourceFile
from fox.data.json_stream import members, not_json
from fox.data.parquet import parquet_rows
from fox.data.quarantine import MAX_RECORD_BYTES, TOO_LONG, BadRecord
from fox.data.remote import fetched
from fox.data.web.reader import page_reader
from fox.data.web.warc import NotAPage, Page, records_of
from fox.errors import UserError


class Row(NamedTuple):
    place: str
    value: object
    """What the row holds, a BadRecord, or NotAPage."""


def rows_of(file: SourceFile, field: str) -> Iterator[Row]:
    """The rows of a file. A page is one row, with its text under `field`; of a Parquet file only `field` is read, and what tells about it."""
    if file.remote:
        with fetched(file.remote) as path:
            yield from rows_of(file._replace(path=path, remote=None), field)
        return
    try:
        if file.suffix == ".parquet":
            for number, value in parquet_rows(file.path, field, About._fields):
                yield Row(f"{file.label} row {number}", value)
            return
        if file.format in ARCHIVES:
            yield from _pages(file, field)
            return
        with _opened(file) as stream:
            match file.format:
                case ".jsonl":
                    yield from _lines(stream, file.label)
                case ".json":
                    for name, value in members(stream):
                        yield Row(f"{file.label} {name}", value)
                case ".html" | ".htm":
                    page = page_reader().read(_whole(stream))
                    yield Row(file.label, {**page._asdict(), field: page.text})
                case _:
                    yield Row(file.label, {field: _text(_whole(stream))})
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadRecord("gzip is cut short or damaged", str(error)) from None
    except UnicodeDecodeError as error:
        raise BadRecord("is not UTF-8", error.object[max(0, error.start - 20) :]) from None
    except OSError as error:
        raise BadRecord(f"can't be read: {error.strerror or type(error).__name__}", str(error)) from None


def require_readers(name: str, files: Iterable[SourceFile]) -> None:
    """Raise UserError, before any work, where a library that one of the files needs is not installed."""
    for suffix in sorted({suffix for file in files for suffix in (file.format, file.suffix)}):
        try:
            if suffix == ".parquet" or (suffix.endswith(".zst") and not suffix.startswith(ARCHIVES)):
                import pyarrow.parquet  # noqa: F401
            if suffix in (".html", ".htm", *ARCHIVES):
                import fastwarc.warc  # noqa: F401
                import resiliparse.extract.html2text  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"source.{name}.files",
                problem=f"{suffix} files need {error.name or 'a library'}, which is not installed",
                mend="pip install 'foxlm[data]'",
            ) from None


def _opened(file: SourceFile) -> IO[bytes]:
    if file.suffix.endswith(".gz"):
        return cast(IO[bytes], gzip.open(file.path))
    if file.suffix.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(file.path), compression="zstd"), 2**16)
    return file.path.open("rb")


def _pages(file: SourceFile, field: str) -> Iterator[Row]:
    """The pages of a web archive."""
    for number, record in records_of(file.path):
        place = f"{file.label} record {number}"
        if not isinstance(record, Page):
            yield Row(place, record)
            continue
        try:
            page = page_reader().read(record.content, record.charset, is_html=record.is_html)
        except BadRecord as bad:
            yield Row(place, bad)
        else:
            value = {"url": record.url, "fetched": record.date, **page._asdict(), field: page.text}
            yield Row(place, value if page.text.strip() else NotAPage("no main text"))


def _whole(stream: IO[bytes]) -> bytes:
    content = stream.read(MAX_RECORD_BYTES + 1)
    if len(content) > MAX_RECORD_BYTES:
        raise BadRecord(TOO_LONG, content[:1000])
    return content


def _text(content: bytes) -> str:
    """All the text, with line ends as in any Python text file."""
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
