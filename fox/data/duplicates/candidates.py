"""What must be compared of the documents that may be nearly alike, brought together: each text is read once, by its own task and in order.

Candidates that hang together by pairs, directly or by others, are a component; whole components are dealt out to parts, so that a part's documents
need no others. Then each task writes the shingles of its candidates, part by part, and near.py reads its part of all tasks' files.

For 10^9 documents of 1,000 shingles, half of them candidates: `plan_verification` is the one step that is not divided, and holds the pairs, of which
there are some 10^9 (16 bytes each, up to six times over while they are merged: 100 GB). Shingles are 4 bytes each: 2 TB, written once and read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from fox.data.duplicates.groups import PAIR, bucket_files, unique_pairs
from fox.data.duplicates.parted import PartedFile, content_of, is_made, parted_file
from fox.data.duplicates.shingles import shingles_in, words_in
from fox.data.duplicates.signatures import signature_files
from fox.errors import Failure
from fox.recipe.schema import Duplicates

TextsOf = Callable[[int, np.ndarray], Iterable[str]]
"""The texts of a task's documents (task, their indexes, rising), in their order."""

PART_DOCUMENTS = 2**16
"""So many candidates, and what remains of the last one's component, are a part: some 256 MiB of shingles."""

CANDIDATE = np.dtype([("index", "<u4"), ("part", "<u4")])
SHINGLED = np.dtype([("index", "<u4"), ("shingles", "<u4")])
SHINGLE = np.dtype("<u4")

_RUN_SHINGLES = 2**23
"""So many are held before they are written: 32 MiB."""


def plan_verification(folder: Path, settings: Duplicates) -> None:
    """Divide all candidates into parts. Raises Failure where a bucket is missing or damaged."""
    signatures, buckets = signature_files(folder, settings), bucket_files(folder)
    if buckets[0].about["made_from"] != content_of(signatures):
        raise Failure(f"{buckets[0].path}: was made from other signatures. Find the duplicates of all buckets again.")
    pairs = _all_pairs(buckets)
    documents = np.unique(np.concatenate((pairs["earlier"], pairs["later"])))
    earlier, later = (np.searchsorted(documents, pairs[name]) for name in ("earlier", "later"))
    part = _parts(_components(earlier, later, documents.size))
    parts = int(part.max(initial=-1)) + 1
    about = {"made_from": content_of(buckets), "parts": parts, "tasks": len(signatures)}
    path = _plan_path(folder)
    if is_made(path, about):
        return
    with parted_file(path, about) as file:
        order = np.argsort(part[later], kind="stable")
        file.add("pairs", pairs[order], part[later][order], parts)
        candidates = np.empty(documents.size, dtype=CANDIDATE)
        candidates["index"], candidates["part"] = documents & np.uint64(0xFFFFFFFF), part
        file.add("candidates", candidates, (documents >> np.uint64(32)).astype(np.uint32), len(signatures))


def _all_pairs(buckets: list[PartedFile]) -> np.ndarray:
    """Each pair once, though it may be in many buckets: they are merged whenever as many have come as there are."""
    pairs = np.empty(0, dtype=PAIR)
    come: list[np.ndarray] = []
    for bucket in buckets:
        come += bucket.read("pairs", PAIR, 0, 1)
        if sum(rows.size for rows in come) > pairs.size:
            pairs, come = unique_pairs(np.concatenate((pairs, *come))), []
    return unique_pairs(np.concatenate((pairs, *come)))


def plan_of(folder: Path) -> PartedFile:
    """What `plan_verification` wrote; `about` has the number of its `parts` and of `tasks`."""
    path = _plan_path(folder)
    if not path.exists():
        raise Failure(f"{path}: is missing. Plan the verification first.")
    return PartedFile(path)


def write_shingles(folder: Path, task: int, texts_of: TextsOf) -> None:
    """Write the shingles of a task's candidates, part by part. Raises Failure where there is no plan, or the texts are not those of the signatures."""
    plan = plan_of(folder)
    path, about = shingles_path(folder, task), {"made_from": plan.crc, "files": plan.about["tasks"]}
    if is_made(path, about):
        return
    found = plan.read("candidates", CANDIDATE, task, task + 1)
    candidates = np.concatenate(found) if found else np.empty(0, dtype=CANDIDATE)
    with parted_file(path, about) as file:
        for rows, shingles in _runs(candidates, texts_of(task, candidates["index"]) if candidates.size else (), path):
            order = np.argsort(rows["part"], kind="stable")
            documents = np.empty(rows.size, dtype=SHINGLED)
            documents["index"], documents["shingles"] = rows["index"], [part.size for part in shingles]
            part, documents = rows["part"][order], documents[order]
            file.add("documents", documents, part, plan.about["parts"])
            parts_of_shingles = np.repeat(part, documents["shingles"])
            file.add("shingles", np.concatenate([shingles[place] for place in order]), parts_of_shingles, plan.about["parts"])  # fmt: skip


def _runs(rows: np.ndarray, texts: Iterable[str], path: Path) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Candidates and the shingles of each (sorted, each once), a run's worth at a time."""
    held: list[np.ndarray] = []
    first = num_shingles = 0
    for text in texts:
        held.append(np.unique(shingles_in(words_in(text))))
        num_shingles += held[-1].size
        if not held[-1].size or first + len(held) > rows.size:
            raise _other_texts(path)
        if num_shingles >= _RUN_SHINGLES:
            yield rows[first : first + len(held)], held
            first, num_shingles, held = first + len(held), 0, []
    if first + len(held) < rows.size:
        raise _other_texts(path)
    if held:
        yield rows[first:], held


def _other_texts(path: Path) -> Failure:
    return Failure(
        f"{path}: can't be made, for the task's texts are others than when its signatures were made. Begin again."
    )


def _components(earlier: np.ndarray, later: np.ndarray, size: int) -> np.ndarray:
    """For each of `size` nodes the least node that edges lead to: of two roots at an edge the greater is hung below the less, until all agree
    (Shiloach & Vishkin 1982)."""
    root = np.arange(size)
    while earlier.size:
        ends = root[earlier], root[later]
        apart = ends[0] != ends[1]
        earlier, later = earlier[apart], later[apart]
        np.minimum.at(root, np.maximum(*ends)[apart], np.minimum(*ends)[apart])
        while not np.array_equal(root[root], root):
            root = root[root]
    return root


def _parts(roots: np.ndarray) -> np.ndarray:
    """The part of each document, by its component: as many whole components as make up PART_DOCUMENTS."""
    _, component, sizes = np.unique(roots, return_inverse=True, return_counts=True)
    _, part = np.unique(
        (np.cumsum(sizes) - sizes) // PART_DOCUMENTS, return_inverse=True
    )  # behind a large component, numbers are left out
    return part[component]


def _plan_path(folder: Path) -> Path:
    return folder / "candidates" / "plan.parts"


def shingles_path(folder: Path, task: int) -> Path:
    return folder / "candidates" / f"{task:06}.parts"
