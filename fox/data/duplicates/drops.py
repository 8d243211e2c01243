"""What is to be left out of a task: documents, each with why and for which other, and lines of those that stay."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fox.data.duplicates.groups import DROPPED, DROPPED_LINE, bucket_files
from fox.data.duplicates.near import near_files
from fox.data.duplicates.parted import PartedFile, content_of
from fox.recipe.schema import Duplicates


class Drop(NamedTuple):
    """Why a document goes: it has the very text ("exact") or nearly the text ("near") of another, and comes after it.

    An exact copy is told of the first that has its text, which may itself have gone for one that is nearly like it.
    """

    reason: Literal["exact", "near"]
    kept_task: int
    kept_index: int


class Drops:
    """What is to be left out of one task."""

    def __init__(self, documents: dict[int, Drop], lines: np.ndarray) -> None:
        self.documents = documents
        """The documents that go, by their index."""
        self._lines = lines

    @classmethod
    def load(cls, folder: Path, task: int, settings: Duplicates) -> Drops:
        """Of one task. Raises Failure where a step before was not done for all buckets and parts, or was of other files."""
        buckets = bucket_files(folder)
        documents = _documents(buckets, task, "exact")
        if settings.near:
            documents |= _documents(near_files(folder, content_of(buckets)), task, "near")
        lines = [rows for file in buckets for rows in file.read("lines", DROPPED_LINE, task, task + 1)]
        return cls(documents, np.sort(np.concatenate(lines or [np.empty(0, dtype=DROPPED_LINE)])))

    def lines(self, index: int) -> np.ndarray:
        """The lines (as `text.split("\\n")` has them, from 0, rising) of a document that go; none where all of it goes.

        A line stays in the first document that has it. Where that goes as nearly the same as another, the line may be lost with it: what they have in
        common are most of their words.
        """
        if index in self.documents:
            return np.empty(0, dtype=np.uint32)
        first, end = np.searchsorted(self._lines["index"], [index, index + 1])
        return self._lines["line"][first:end]


def _documents(files: list[PartedFile], task: int, reason: Literal["exact", "near"]) -> dict[int, Drop]:
    found = [rows for file in files for rows in file.read(reason, DROPPED, task, task + 1)]
    return {index: Drop(reason, kept >> 32, kept & 0xFFFFFFFF) for rows in found for index, kept in rows.tolist()}
