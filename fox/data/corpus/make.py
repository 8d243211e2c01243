"""The corpus step: sources in, `corpus/SOURCE/NNNNN.parquet` out, by as many processes or machines as the recipe names.

What is done of it stays done: each task leaves a mark in `corpus/.work`, which goes with the manifest's writing. The files are the same to the last bit
however the work was divided or interrupted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fox.artifacts import WORK, write_json
from fox.data.corpus.funnel import Funnel
from fox.data.corpus.seconds import seconds_of
from fox.data.corpus.store import WRITING
from fox.data.corpus.tasks import Task, tasks_of, write_tasks
from fox.data.decontaminate import FIRST_PLACES, Questions
from fox.data.quarantine import Tally
from fox.errors import UserError
from fox.progress import Meter, meter
from fox.recipe import Recipe
from fox.recipe.schema import Executor

FUNNEL = "funnel.json"


def make_corpus(recipe: Recipe, questions: Questions | None, folder: Path, console: Console) -> dict[str, Any]:
    """Fill `folder`, or go on with it, and tell for each source what was read and what became of it, and how long each block took.

    Raises UserError where too many records of a source are bad, or none is left; Failure where a task can't be done.
    """
    try:
        from fox.data.corpus.blocks import Block, Decontaminate, Filter, Ledger, License, Mask, Read, Write
        from fox.data.corpus.executor import Round, do_round
        from fox.data.filters.judge import judge_of

        if recipe.data.quality:
            import sklearn  # noqa: F401  # before any work, and not after hours of it
    except ImportError as error:
        mend = "pip install 'foxlm[data]'"
        raise UserError(
            "data", problem=f"making a corpus needs {error.name}, which is not installed", mend=mend
        ) from None

    work = folder / WORK
    tallies = {name: Tally(name, source) for name, source in recipe.source.items()}
    tasks = tasks_of(recipe, tallies)
    work.mkdir(parents=True, exist_ok=True)
    write_tasks(work / "tasks.jsonl", tasks)
    counts = work / "counts"
    counts.mkdir(exist_ok=True)
    ledger = Ledger(recipe, work / "tasks.jsonl", counts)
    blocks: list[Block] = [Read(ledger), License(ledger)]
    judges = {name: judge_of(name, source.filter) for name, source in recipe.source.items() if source.filter}
    if judges:
        blocks.append(Filter(ledger, judges))
    if questions:
        if not (work / "questions").exists():  # processes of a cluster may have it open still
            questions.save(work / "questions")
        blocks.append(Decontaminate(ledger, work / "questions"))
    blocks.append(Mask(ledger))  # last, for a question with a number in it would be another one without
    settings = recipe.data.executor or Executor()
    labels = _labels(tasks)
    whole = partial(document_path, folder)
    ranked = frozenset(source.best_of for source in recipe.source.values() if source.best_of)
    cleaned = partial(_cleaned_path, folder, work / "ranked", ranked)
    looks = recipe.data.duplicates is not None
    first = partial(document_path, work / "documents") if looks else cleaned
    write = Write(ledger, first, work / "signatures" if looks else None)
    with meter("corpus", sum(task.num_bytes for task in tasks), "bytes", console=console) as shown:
        do_round(
            settings,
            Round("read", [*blocks, write], labels, work / "executor/read"),
            partial(_show, shown, tasks, counts),
        )
    _check(recipe, *_counted(recipe, tallies, counts, len(tasks)))  # before more work is done
    if recipe.data.duplicates:
        from fox.data.corpus.duplicates import drop_duplicates

        counts = drop_duplicates(recipe, ledger, first, cleaned, labels, settings, work, console)
    of_quality: dict[str, Any] = {}
    if recipe.data.quality:
        from fox.data.corpus.best import Places, keep, move_best

        places = Places(cleaned, whole, counts, work / "counts-with-the-best", work / "quality")
        of_quality = {"quality": move_best(recipe, places, labels, settings, work, console)}
        counts = places.counts
        keep(places.folder, folder)
    tallies, funnels = _counted(recipe, tallies, counts, len(tasks))
    _check(recipe, tallies, funnels, at_the_end=True)
    for left in folder.glob(f"*/*{WRITING}"):  # by a process that was killed
        left.unlink()
    facts = _facts(recipe, tallies, funnels, folder) | of_quality
    return {**facts, "seconds": seconds_of(work / "executor")}


def document_path(folder: Path, source: str, task: int) -> Path:
    """Where a task's documents are, if it has any."""
    return folder / source / f"{task:05}.parquet"


def _cleaned_path(folder: Path, apart: Path, ranked: frozenset[str], source: str, task: int) -> Path:
    """Where a task's documents are once they are read, filtered and unlike each other: in their place, unless some are to be moved."""
    return document_path(apart if source in ranked else folder, source, task)


def _labels(tasks: Sequence[Task]) -> list[str]:
    return [
        f"{task.source}: {task.files[0].label}" + (f" and {len(task.files) - 1} more" if len(task.files) > 1 else "")
        for task in tasks
    ]


def _show(shown: Meter, tasks: Sequence[Task], counts: Path, done: set[int]) -> None:
    """Bytes of the tasks that are done; beside them, how many documents were read, in those at work, too."""
    at_work = sum(_number(path) for path in counts.glob("*.at"))
    note = f"{len(done)}/{len(tasks)} tasks" + (f", {at_work:,} documents in those at work" if at_work else "")
    shown.advance_to(sum(tasks[rank].num_bytes for rank in done), note)


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="utf-8") or 0)
    except (OSError, ValueError):  # it has just ended
        return 0


def _counted(
    recipe: Recipe, tallies: dict[str, Tally], counts: Path, num_tasks: int
) -> tuple[dict[str, Tally], dict[str, Funnel]]:
    """What all tasks have counted, added to what is known of each source's files."""
    tallies, funnels = deepcopy(tallies), {name: Funnel() for name in recipe.source}
    for task in range(num_tasks):
        counted = json.loads((counts / f"{task:05}.json").read_bytes())
        tallies[counted["source"]].add(counted["reading"])
        funnels[counted["source"]].add(counted["funnel"])
        for name, moved in counted.get("moved", {}).items():
            funnels[name].add(moved)
            tallies[name].good += moved["kept"]["documents"]
    return tallies, funnels


def _check(recipe: Recipe, tallies: dict[str, Tally], funnels: dict[str, Funnel], at_the_end: bool = False) -> None:
    """Raise UserError where too many records of a source are bad, or no document of it is left."""
    for name, source in recipe.source.items():
        if source.best_of is None:
            tallies[name].check()
        elif not at_the_end:
            continue
        funnel = funnels[name]
        if funnel.kept.documents or funnel.moved:
            continue
        mend = "Ask less of it, or leave the source out."
        if "licence" in funnel.dropped:
            mend = f"State its terms, -o source.{name}.license=…, or keep such documents: -o data.unlicensed=keep."
        problem = f"has no document that passes: {_why(funnel)}"
        raise UserError(f"source.{name}.path", source.path, problem=problem, mend=mend)


def _facts(recipe: Recipe, tallies: dict[str, Tally], funnels: dict[str, Funnel], folder: Path) -> dict[str, Any]:
    write_json(folder / FUNNEL, {name: funnel.as_dict() for name, funnel in funnels.items()})
    return {
        "sources": {
            name: {
                "reading": tallies[name].as_dict(),
                "contaminated": _contaminated(funnel),
                "funnel": funnel.as_dict(with_samples=False),
            }
            for name, funnel in funnels.items()
        }
    }


def _why(funnel: Funnel) -> str:
    reasons = Counter(
        {f"{step}: {reason}": d.documents for step, found in funnel.dropped.items() for reason, d in found.items()}
    )
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3)) or "there are none"


def _contaminated(funnel: Funnel) -> dict[str, Any]:
    """As shards.py tells it where there is no corpus."""
    files = funnel.dropped.get("evaluation", {})
    documents = Counter({file: dropped.documents for file, dropped in files.items()})
    places = {file: [sample["place"] for sample in dropped.samples][:FIRST_PLACES] for file, dropped in files.items()}
    return {"documents": dict(documents.most_common()), "first_places": places}
