"""Who is whose copy, and who may nearly be one: documents and lines with the same keys, bucket by bucket.

Of equal texts, and of equal lines of several documents, the first stays. Of documents that share a band, pairs are made that near.py compares: each
with the first of them, and with the one before it. These are at most two for each document and band, where all would be quadratic: a template
with 100,000 pages would have 5 x 10^9. Little is lost. A document that is nearly like the first of its kind meets it in some band with the
probability that minhash.py tells, and in that band the first is first, or comes behind a stranger: then the pair with the one before is
there, and near.py asks for whom that one has gone. Identical texts count once, so a page that is there 100,000 times makes no pair at all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fox.data.duplicates.parted import PartedFile, content_of, files_of_one_making, is_made, parted_file
from fox.data.duplicates.signatures import BAND, EXACT, LINE, PARTS, num_buckets, signature_files
from fox.recipe.schema import Duplicates

PAIR = np.dtype([("earlier", "<u8"), ("later", "<u8")])
"""Two documents, each as task x 2^32 + index: the order of preference."""
DROPPED = np.dtype([("index", "<u4"), ("kept", "<u8")])
"""One of a task's documents, and for which it goes."""
DROPPED_LINE = np.dtype([("index", "<u4"), ("line", "<u4")])


def find_duplicates(folder: Path, bucket: int, settings: Duplicates) -> None:
    """Compare all tasks' rows of one bucket (below `num_buckets`), and write what is found. Raises Failure where signatures are missing or damaged."""
    files = signature_files(folder, settings)
    buckets = num_buckets(files)
    path = _path(folder, bucket)
    about = {"made_from": content_of(files), "files": buckets}
    if is_made(path, about):
        return
    first, end = (place * PARTS // buckets for place in (bucket, bucket + 1))
    with parted_file(path, about) as file:
        copies, tasks = _by_task(_exact(_rows(files, "exact", EXACT, first, end)), DROPPED)
        file.add("exact", copies, tasks, len(files))
        if settings.near:
            pairs = _pairs(_rows(files, "band", BAND, first, end))
            file.add("pairs", pairs, np.zeros(pairs.size, dtype=np.uint8), 1)
        if settings.lines:
            lines, tasks = _by_task(_lines(_rows(files, "line", LINE, first, end)), DROPPED_LINE)
            file.add("lines", lines, tasks, len(files))


def bucket_files(folder: Path) -> list[PartedFile]:
    """What was found in all buckets. Raises Failure where a bucket is missing, damaged, or of other signatures than the others."""
    return files_of_one_making(lambda bucket: _path(folder, bucket), "Find the duplicates of all buckets first.")


def identity(task: int, indexes: np.ndarray) -> np.ndarray:
    """A task's documents among all others (uint64)."""
    return np.uint64(task << 32) | indexes.astype(np.uint64)


def _rows(files: list[PartedFile], table: str, kind: np.dtype, first: int, end: int) -> dict[str, np.ndarray]:
    """All tasks' rows as columns, in the order of preference; `document` is what identifies each row's."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*(kind.names or ()), "document") if name != "index"}
    for task, file in enumerate(files):
        for rows in file.read(table, kind, first, end):
            for name, column in columns.items():
                column.append(identity(task, rows["index"]) if name == "document" else rows[name].copy())
    return {name: np.concatenate(column) if column else np.empty(0, np.uint64) for name, column in columns.items()}


def _exact(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    order = np.lexsort((rows["rest"], rows["key"]))  # stable: those with one text stay in the order of preference
    key, rest, document = rows["key"][order], rows["rest"][order], rows["document"][order]
    new = np.ones(order.size, dtype=bool)
    new[1:] = (key[1:] != key[:-1]) | (rest[1:] != rest[:-1])
    kept = document[new][np.cumsum(new) - 1] if order.size else document
    return {"document": document[~new], "kept": kept[~new]}


def _pairs(rows: dict[str, np.ndarray]) -> np.ndarray:
    """Documents that share a band: each with the first of the band, and with the one before."""
    key, document, fingerprint = _shared(rows.pop("key"), rows.pop("document"), rows.pop("print"))
    order = np.lexsort((fingerprint, key))
    same = fingerprint[order][1:] == fingerprint[order][:-1]
    same &= key[1:] == key[:-1]  # which is in order already
    again = order[1:][same]
    key, document = np.delete(key, again), np.delete(document, again)
    new = np.ones(key.size, dtype=bool)
    new[1:] = key[1:] != key[:-1]
    later = np.flatnonzero(~new)
    first = np.flatnonzero(new)[np.cumsum(new) - 1][later] if key.size else later
    before = later[later - 1 > first] - 1
    pairs = np.empty(later.size + before.size, dtype=PAIR)
    pairs["earlier"] = document[np.concatenate((first, before))]
    pairs["later"] = document[np.concatenate((later, before + 1))]
    return pairs


def unique_pairs(pairs: np.ndarray) -> np.ndarray:
    """Each pair once, by the later document and then the earlier one."""
    pairs = pairs[np.lexsort((pairs["earlier"], pairs["later"]))]
    new = np.ones(pairs.size, dtype=bool)
    new[1:] = pairs[1:] != pairs[:-1]
    return pairs[new]


def _lines(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    key, document, line = _shared(rows.pop("key"), rows.pop("document"), rows.pop("line"))
    new = np.ones(key.size, dtype=bool)
    new[1:] = key[1:] != key[:-1]
    first = document[new][np.cumsum(new) - 1] if key.size else document
    again = document != first
    return {"document": document[again], "line": line[again]}


def _shared(key: np.ndarray, document: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows whose key another row has, too, by key and then by preference."""
    order = np.argsort(key, kind="stable")
    key = key[order]
    same = key[1:] == key[:-1]
    shared = np.zeros(key.size, dtype=bool)
    shared[1:] = same
    shared[:-1] |= same
    return key[shared], document[order[shared]], other[order[shared]]


def _by_task(found: dict[str, np.ndarray], kind: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Rows of what was found, by document, and the task of each."""
    document = found.pop("document")
    (other,) = found.values()
    order = np.lexsort((other, document))
    rows = np.empty(document.size, dtype=kind)
    rows["index"] = document[order] & np.uint64(0xFFFFFFFF)
    rows[next(iter(found))] = other[order]
    return rows, (document[order] >> np.uint64(32)).astype(np.uint32)


def _path(folder: Path, bucket: int) -> Path:
    return folder / "groups" / f"{bucket:06}.parts"
