"""The rounds that find what was said before, in any source, and write the corpus without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from fox.data.corpus.blocks import Each, Ledger, PathOf, ReadAgain, Write
from fox.data.corpus.executor import Round, do_shown_round
from fox.data.corpus.store import read_texts
from fox.data.corpus.tasks import read_task
from fox.data.duplicates.candidates import plan_of, plan_verification, write_shingles
from fox.data.duplicates.groups import find_duplicates
from fox.data.duplicates.near import verify
from fox.data.duplicates.signatures import num_buckets, signature_files
from fox.recipe import Recipe
from fox.recipe.schema import Duplicates, Executor


def drop_duplicates(
    recipe: Recipe,
    ledger: Ledger,
    first: PathOf,
    whole: PathOf,
    labels: Sequence[str],
    executor: Executor,
    work: Path,
    console: Console,
) -> Path:
    """From the documents at `first`, and their signatures in `work`, those at `whole`; the folder that has the counts of all tasks."""
    settings = recipe.data.duplicates
    assert settings
    folder = work / "signatures"

    def do(name: str, block: Sequence[Each | ReadAgain | Write], of: Sequence[str]) -> None:
        do_shown_round(executor, Round(name, block, of, work / "executor" / name), console)

    buckets = [f"bucket {number}" for number in range(num_buckets(signature_files(folder, settings)))]
    do("duplicates", [_each("compare keys", _find, folder, settings)], buckets)
    if settings.near:
        plan_verification(folder, settings)
        do("shingles", [_each("shingles", _write_shingles, folder, ledger.tasks, first)], labels)
        parts = [f"part {number}" for number in range(plan_of(folder).about["parts"])]
        do("verify", [_each("compare texts", _verify, folder, settings)], parts)
    counts = work / "counts-without-duplicates"
    counts.mkdir(exist_ok=True)
    again = Ledger(recipe, ledger.tasks, counts)
    questions = work / "questions"
    reader = ReadAgain(again, first, ledger.folder, folder, questions if questions.exists() else None)
    do("write", [reader, Write(again, whole)], labels)
    return counts


def _each(name: str, function: Callable[..., None], *values: object) -> Each:
    return Each(name, partial(function, *values))


def _find(folder: Path, settings: Duplicates, bucket: int) -> None:
    find_duplicates(folder, bucket, settings)


def _verify(folder: Path, settings: Duplicates, part: int) -> None:
    verify(folder, part, settings)


def _write_shingles(folder: Path, tasks: Path, path_of: PathOf, task: int) -> None:
    path = path_of(read_task(tasks, task).source, task)

    def texts_of(_: int, indexes: np.ndarray) -> Iterator[str]:
        wanted = set(indexes.tolist())
        return (text for index, text in enumerate(read_texts(path) if path.exists() else ()) if index in wanted)

    write_shingles(folder, task, texts_of)
