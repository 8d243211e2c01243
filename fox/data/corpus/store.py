"""The documents of a corpus as Parquet: a row each, with what is known of it. Needs pyarrow, which is imported only when it is used.

The same documents give the same bytes: row groups end by size, and nothing of the time or the machine goes into a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fox.data.document import About, Document
from fox.errors import Failure

GROUP_BYTES = 16 * 2**20
"""Text in a row group: few enough to be read at once, enough for zstd to find what repeats."""

WRITING = ".writing"
"""What a file that is not whole yet ends in: a killed process leaves it, and the next one that does the task replaces it."""


class CorpusWriter:
    """Writes one file, which is there under its name once it is whole; no document, no file."""

    def __init__(self, path: Path, source: str, is_chat: bool) -> None:
        self._path, self._source, self._is_chat = path, source, is_chat
        self._partial = path.with_name(f"{path.name}.{os.getpid()}{WRITING}")
        self._rows: list[dict[str, Any]] = []
        self._size = 0
        self._file: Any = None

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self._close()
        elif self._file is not None:
            self._file.close()
            self._partial.unlink()

    def write(self, document: Document, quality: float | None = None) -> None:
        """Add a document, and its score where it has one."""
        content = {"messages": list(document.messages or ())} if self._is_chat else {"text": document.text}
        row = {"id": document.digest[:16].hex(), **content, "source": self._source, "place": document.place}
        scores = {"language_score": document.language_score, "quality": quality}
        self._rows.append({**row, **document.about._asdict(), **scores})
        self._size += document.num_bytes
        if self._size >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        schema = _schema(self._is_chat)
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = ParquetWriter(
                self._partial, schema, compression="zstd", store_schema=False, write_page_checksum=True
            )
        self._file.write_table(pyarrow.Table.from_pylist(self._rows, schema))
        self._rows, self._size = [], 0

    def _close(self) -> None:
        if self._rows:
            self._write_group()
        if self._file is None:
            self._path.unlink(missing_ok=True)
            return
        self._file.close()
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        self._partial.replace(self._path)


def files_of_corpus(folder: Path, source: str) -> list[Path]:
    """A source's files, in the order of their documents."""
    return sorted((folder / source).glob("*.parquet"))


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of one file. Raises Failure where it is damaged."""
    for row in _rows(path):
        messages = row.get("messages")
        yield Document(
            row["source"],
            row["place"],
            text=row.get("text"),
            messages=tuple(messages) if messages is not None else None,
            about=About(*(row[name] for name in About._fields)),
            language_score=row["language_score"],
        )


def read_ids(path: Path) -> np.ndarray:
    """The ids of a file's documents, as 16 bytes each."""
    import pyarrow
    from pyarrow.parquet import read_table

    try:
        ids = read_table(path, columns=["id"], use_threads=False, page_checksum_verification=True)["id"].to_pylist()
        return np.array([bytes.fromhex(identity) for identity in ids], dtype="V16")
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Failure(f"{path}: is damaged ({error}). Make the corpus again: --redo corpus.") from None


def read_texts(path: Path) -> Iterator[str]:
    """The content alone of each document of a file."""
    for document in read_documents(path):
        yield document.content


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(64, use_threads=False):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: is damaged ({error}). Make the corpus again: --redo corpus.") from None


def _schema(is_chat: bool) -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    content = ("messages", pa.list_(message)) if is_chat else ("text", pa.string())
    about = [(name, pa.string()) for name in About._fields]
    strings = [(name, pa.string()) for name in ("source", "place")]
    scores = [(name, pa.float32()) for name in ("language_score", "quality")]
    return pa.schema([("id", pa.string()), content, *strings, *about, *scores])
