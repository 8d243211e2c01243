"""Who is nearly a copy indeed: candidates are compared by all their shingles, and none goes for one that goes itself.

In the order of preference, a document is compared with its candidates; in place of one that has gone, with the one for which that went. It goes
where their Jaccard index is at least `min_jaccard`. So each that goes is like one that stays, which no chain of ever less like ones can undo
(FineWeb and others drop all but one of each component, arXiv 2406.17557; two ends of a chain may have nothing in common).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fox.data.duplicates.candidates import (
    SHINGLE,
    SHINGLED,
    TextsOf,
    plan_of,
    plan_verification,
    shingles_path,
    write_shingles,
)
from fox.data.duplicates.groups import DROPPED, PAIR, identity
from fox.data.duplicates.parted import PartedFile, content_of, files_of_one_making, is_made, parted_file
from fox.data.duplicates.shingles import jaccard
from fox.errors import Failure
from fox.recipe.schema import Duplicates

_CHUNK_PAIRS = 2**16


def verify(folder: Path, part: int, settings: Duplicates) -> None:
    """Compare the candidates of one part of the plan, and write which go. Raises Failure where a task's shingles are missing or damaged."""
    plan = plan_of(folder)
    tasks = files_of_one_making(lambda task: shingles_path(folder, task), "Write the shingles of all tasks first.")
    if tasks[0].about["made_from"] != plan.crc:
        raise Failure(f"{tasks[0].path}: was made for another plan. Write the shingles of all tasks again.")
    about = {
        "made_from": content_of(tasks),
        "groups": plan.about["made_from"],
        "min_jaccard": settings.min_jaccard,
        "files": plan.about["parts"],
    }
    path = _path(folder, part)
    if is_made(path, about):
        return
    gone = _gone(plan.read("pairs", PAIR, part, part + 1), _Documents(tasks, part), settings.min_jaccard)
    document = np.array(sorted(gone), dtype=np.uint64)
    rows = np.empty(document.size, dtype=DROPPED)
    rows["index"], rows["kept"] = document & np.uint64(0xFFFFFFFF), [gone[each] for each in document.tolist()]
    with parted_file(path, about) as file:
        file.add("near", rows, (document >> np.uint64(32)).astype(np.uint32), plan.about["tasks"])


def verify_all(folder: Path, texts_of: TextsOf, settings: Duplicates) -> None:
    """Plan, write the shingles of all tasks and verify all parts, in this process."""
    plan_verification(folder, settings)
    about = plan_of(folder).about
    for task in range(about["tasks"]):
        write_shingles(folder, task, texts_of)
    for part in range(about["parts"]):
        verify(folder, part, settings)


def near_files(folder: Path, groups: int) -> list[PartedFile]:
    """What was verified, of all parts. Raises Failure where one is missing or damaged, or it was of other buckets than those that `groups` tells."""
    plan = plan_of(folder)
    mend = "Verify all parts first."
    files = files_of_one_making(lambda part: _path(folder, part), mend) if plan.about["parts"] else []
    if plan.about["made_from"] != groups or any(file.about["groups"] != groups for file in files):
        raise Failure(f"{plan.path}: was made from other buckets. Plan the verification again.")
    return files


class _Documents:
    """The shingles of a part's documents. They stay on the disk until they are asked for: a component may be larger than the memory."""

    def __init__(self, tasks: list[PartedFile], part: int) -> None:
        self._runs: list[np.ndarray] = []
        ids, runs, ends = [], [], []
        for task, file in enumerate(tasks):
            documents = file.read("documents", SHINGLED, part, part + 1)
            for rows, shingles in zip(documents, file.read("shingles", SHINGLE, part, part + 1), strict=True):
                ids.append(identity(task, rows["index"]))
                runs.append(np.full(rows.size, len(self._runs)))
                ends.append(np.cumsum(rows["shingles"], dtype=np.int64))
                self._runs.append(shingles)
        self._ids, self._run_of, self._ends = (np.concatenate(each) for each in (ids, runs, ends))

    def shingles(self, document: int) -> np.ndarray:
        place = int(np.searchsorted(self._ids, np.uint64(document)))
        run = self._run_of[place]
        start = self._ends[place - 1] if place and self._run_of[place - 1] == run else 0
        return self._runs[run][start : self._ends[place]]


def _gone(pairs: list[np.ndarray], documents: _Documents, min_jaccard: float) -> dict[int, int]:
    """The documents that go, and for which that stays. Pairs come by the later document, and the earlier one."""
    gone: dict[int, int] = {}
    current, tried = -1, set[int]()
    shingles = np.empty(0, dtype=SHINGLE)
    for earlier, later in _each(pairs):
        if later != current:
            current, tried, shingles = later, set(), documents.shingles(later)
        stays = gone.get(earlier, earlier)
        if later in gone or stays in tried:
            continue
        tried.add(stays)
        others = documents.shingles(stays)
        most = min(shingles.size, others.size) / max(shingles.size, others.size)  # if the one were all in the other
        if most >= min_jaccard and jaccard(shingles, others) >= min_jaccard:
            gone[later] = stays
    return gone


def _each(pairs: list[np.ndarray]) -> Iterator[tuple[int, int]]:
    for rows in pairs:
        for start in range(0, rows.size, _CHUNK_PAIRS):
            yield from rows[start : start + _CHUNK_PAIRS].tolist()


def _path(folder: Path, part: int) -> Path:
    return folder / "near" / f"{part:06}.parts"
