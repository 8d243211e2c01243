"""The work of making a corpus, cut into tasks: the same ones wherever and by however many they are done, so that their numbers are names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fox.artifacts import write_atomically
from fox.data.files import SourceFile, files_of
from fox.data.quarantine import Tally
from fox.data.rows import require_readers
from fox.recipe import Recipe

TASK_BYTES = 8 * 2**20
"""A larger file is a task; smaller ones that follow each other are one up to this. What is lost with a killed process is a task."""


class Task(NamedTuple):
    """Files of one source that one process reads, one after another."""

    source: str
    files: tuple[SourceFile, ...]
    num_bytes: int


def tasks_of(recipe: Recipe, tallies: Mapping[str, Tally]) -> list[Task]:
    """The tasks of all sources, in the order in which their documents are preferred to later ones that are the same.

    Raises UserError where a source has no file to read, or a library is missing that one needs.
    """
    tasks: list[Task] = []
    for name, source in recipe.source.items():
        if source.best_of is not None:  # another source's tasks make it
            continue
        files = files_of(name, source, tallies[name])
        require_readers(name, files)
        tasks += (Task(name, tuple(group), size) for group, size in _groups(files))
    return tasks


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """One line a task, for the processes that do them."""
    lines = ({**task._asdict(), "files": [file.as_json() for file in task.files]} for task in tasks)
    write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def read_task(path: Path, number: int) -> Task:
    """The task of this number, from 0 on."""
    with path.open(encoding="utf-8") as lines:
        line = next(line for at, line in enumerate(lines) if at == number)
    values = json.loads(line)
    return Task(**{**values, "files": tuple(SourceFile.from_json(file) for file in values["files"])})


def _groups(files: Iterable[SourceFile]) -> Iterator[tuple[list[SourceFile], int]]:
    group: list[SourceFile] = []
    size = 0
    for file in files:
        of_file = file.num_bytes()
        if group and size + of_file > TASK_BYTES:
            yield group, size
            group, size = [], 0
        group.append(file)
        size += of_file
    if group:
        yield group, size
