"""A corpus that lies in tasks, and what goes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from fox.data.duplicates.drops import Drops
from fox.data.duplicates.groups import find_duplicates
from fox.data.duplicates.near import verify_all
from fox.data.duplicates.signatures import num_buckets, signature_files, signature_writer
from fox.recipe.schema import Duplicates

Tasks = Sequence[Sequence[str]]


@pytest.fixture
def sign(tmp_path: Path) -> Callable[[Tasks, Duplicates], Path]:
    """Writes the signatures of all tasks, and says into which folder."""

    def sign(tasks: Tasks, settings: Duplicates) -> Path:
        for task, texts in enumerate(tasks):
            with signature_writer(tmp_path / "work", task, settings) as writer:
                for text in texts:
                    writer.add(text)
        return tmp_path / "work"

    return sign


@pytest.fixture
def drop(sign: Callable[[Tasks, Duplicates], Path]) -> Callable[[Tasks, Duplicates], list[Drops]]:
    """All steps in turn, and what is to be left out of each task."""

    def texts_of(tasks: Tasks) -> Callable[[int, np.ndarray], Iterator[str]]:
        return lambda task, indexes: (tasks[task][index] for index in indexes.tolist())

    def drop(tasks: Tasks, settings: Duplicates) -> list[Drops]:
        folder = sign(tasks, settings)
        for bucket in range(num_buckets(signature_files(folder, settings))):
            find_duplicates(folder, bucket, settings)
        if settings.near:
            verify_all(folder, texts_of(tasks), settings)
        return [Drops.load(folder, task, settings) for task in range(len(tasks))]

    return drop
