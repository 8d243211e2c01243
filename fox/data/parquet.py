"""Some columns of a Parquet file, row by row. Needs pyarrow, which is imported only here and only when it is used."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fox.data.quarantine import BadRecord

BATCH_ROWS = 64
"""Few, for each may be as long as MAX_RECORD_BYTES; pages are decompressed once however few are taken."""


def parquet_rows(path: Path, field: str, also: Collection[str] = ()) -> Iterator[tuple[int, Any]]:
    """(row number from 1, {field: value}), or a BadRecord for the value. Raises BadRecord where the file is broken.

    Of the columns named in `also`, those that there are and that hold text come with it.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with pyarrow.OSFile(str(path), "rb") as opened, ParquetFile(opened, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            if names.count(field) != 1:
                other = ', but "messages": set kind = "chat"' if "messages" in names else ""
                raise BadRecord(f'no "{field}"{other}', f"columns: {names}", records=max(1, file.metadata.num_rows))
            texts = [part.name for part in file.schema_arrow if part.name in also and _is_text(part.type)]
            columns = [field, *(name for name in texts if name != field and names.count(name) == 1)]
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                for row in zip(*(batch.column(name) for name in columns), strict=True):
                    number += 1
                    yield number, _values(row, columns)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise BadRecord("Parquet is cut short or damaged", str(error)) from None
    except OSError as error:
        if error.errno:
            raise
        raise BadRecord("Parquet is cut short or damaged", str(error)) from None  # Arrow's, not the system's


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _values(row: tuple[Any, ...], columns: list[str]) -> object:
    try:
        return {name: scalar.as_py() for name, scalar in zip(columns, row, strict=True)}
    except UnicodeDecodeError as error:
        return BadRecord("is not UTF-8", bytes(error.object[:1000]))
    except RecursionError:
        return BadRecord("Parquet is nested too deep")
