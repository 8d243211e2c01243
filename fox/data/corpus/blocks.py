"""The steps of a task that makes documents of files, as blocks of a datatrove pipeline: read, clean, filter, write.

A block takes documents one by one and yields those that go on; what it drops, it tells the ledger of its task. The ledger is shared: the
whole pipeline goes to another process in one piece. `stats/` in the executor's folder has the time that each block took.
"""

from __future__ import annotations

import json
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.base import PipelineStep

from fox.artifacts import write_json
from fox.data.corpus.funnel import Funnel
from fox.data.corpus.store import CorpusWriter, read_documents
from fox.data.corpus.tasks import Task, read_task
from fox.data.decontaminate import Questions
from fox.data.document import Document
from fox.data.duplicates.drops import Drop, Drops
from fox.data.duplicates.signatures import signature_writer
from fox.data.filters.judge import Judge
from fox.data.personal import mask_document
from fox.data.quarantine import Tally
from fox.data.sources import read_files
from fox.recipe import Recipe

Documents = Iterator[Document]
PathOf = Callable[[str, int], Path]
"""Where a source's task of that number keeps its documents."""

PROGRESS_EVERY_S = 1.0


class Ledger:
    """What a task has counted so far. One for all blocks of a pipeline."""

    task: Task
    tally: Tally
    funnel: Funnel

    def __init__(self, recipe: Recipe, tasks: Path, folder: Path) -> None:
        """`tasks` has the list of all tasks; in `folder` each leaves its counts when it is done, and how far it is until then."""
        self.recipe, self.tasks, self.folder = recipe, tasks, folder

    def begin(self, rank: int) -> Task:
        self.task = read_task(self.tasks, rank)
        self.tally = Tally(self.task.source, self.recipe.source[self.task.source])
        self.funnel = Funnel(mask=tuple(self.recipe.data.mask_personal))
        return self.task

    def finish(self, rank: int) -> None:
        counted = {"source": self.task.source, "reading": self.tally.as_dict(), "funnel": self.funnel.as_dict()}
        write_json(self.folder / f"{rank:05}.json", counted)
        progress_path(self.folder, rank).unlink(missing_ok=True)


def progress_path(folder: Path, rank: int) -> Path:
    """Where a task that is at work says how many documents it has read."""
    return folder / f"{rank:05}.at"


class Step(PipelineStep):
    """A step of a task that keeps a ledger."""

    type = "Fox"

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger


class Block(Step):
    """A step that looks at one document after another."""

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Documents:
        for document in data:
            self.stat_update("documents")
            with self.track_time():
                kept = self.look_at(document)
            if kept is not None:
                yield kept

    @abstractmethod
    def look_at(self, document: Document) -> Document | None:
        """The document as it goes on, or None once the ledger knows why it does not."""


class Read(Step):
    """The documents of a task's files."""

    name = "read"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        task = self.ledger.begin(rank)
        source = self.ledger.recipe.source[task.source]
        documents = read_files(task.source, source, task.files, self.ledger.tally)
        progress, told = progress_path(self.ledger.folder, rank), 0.0
        while True:
            with self.track_time():
                document = next(documents, None)
            if document is None:
                return
            self.ledger.funnel.read.add(1, document.num_bytes)
            self.stat_update("documents")
            self.stat_update("bytes", value=document.num_bytes, unit="doc")
            if (now := time.monotonic()) - told > PROGRESS_EVERY_S:
                progress.write_text(str(self.ledger.funnel.read.documents), encoding="utf-8")
                told = now
            yield document


class License(Block):
    """Each document with its terms: its own, or those of its source. One that has none goes, unless the recipe keeps it."""

    name = "licence"

    def look_at(self, document: Document) -> Document | None:
        terms = document.about.license or self.ledger.recipe.source[document.source].license
        if not terms and self.ledger.recipe.data.unlicensed != "keep":
            self.ledger.funnel.drop(document, "licence", "not stated")
            return None
        return replace(document, about=document.about._replace(license=terms))


class Filter(Block):
    """Documents that their source's filter keeps, with the language that was found."""

    name = "filter"

    def __init__(self, ledger: Ledger, judges: dict[str, Judge]) -> None:
        super().__init__(ledger)
        self._judges = judges

    def look_at(self, document: Document) -> Document | None:
        judge = self._judges.get(document.source)
        if judge is None or document.text is None:
            return document
        verdict = judge.judge(document.text, document.about.url)
        if verdict.step:
            self.ledger.funnel.drop(document, verdict.step, verdict.reason)
            return None
        self.ledger.funnel.cut_from("c4", verdict.cut)
        about = document.about._replace(language=verdict.language)
        return replace(document, text=verdict.text, about=about, language_score=verdict.language_score)


class Mask(Block):
    """Documents without the personal data that the recipe names."""

    name = "mask personal data"

    def look_at(self, document: Document) -> Document:
        masked, found = mask_document(document, self.ledger.recipe.data.mask_personal)
        self.ledger.tally.masked.update(found)
        return masked


class Decontaminate(Block):
    """Documents that hold no text of an evaluation."""

    name = "evaluation texts"

    def __init__(self, ledger: Ledger, questions: Path) -> None:
        super().__init__(ledger)
        self._folder = questions

    @cached_property
    def _questions(self) -> Questions:
        return Questions.load(self._folder)

    def look_at(self, document: Document) -> Document | None:
        if file := self._questions.file_with(document.content):
            self.ledger.funnel.drop(document, "evaluation", file)
            return None
        return document


class Write(Step):
    """The end of a task: its documents in a file, with what tells duplicates where these are looked for, and then its counts."""

    name = "write"

    def __init__(self, ledger: Ledger, path_of: PathOf, signatures: Path | None = None) -> None:
        super().__init__(ledger)
        self._path_of, self._signatures = path_of, signatures

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> None:
        document = next(data, None)  # the reader before us has begun the task by now
        name = self.ledger.task.source
        is_chat = self.ledger.recipe.source[name].kind == "chat"
        with ExitStack() as files:
            writer = files.enter_context(CorpusWriter(self._path_of(name, rank), name, is_chat))
            sign = files.enter_context(self._signing(rank))
            while document is not None:
                with self.track_time():
                    writer.write(document)
                    sign(document.content)
                    self.ledger.funnel.keep(document)
                document = next(data, None)
            with self.track_time():  # the most of it, where a task's documents are one group of rows
                files.close()
        self.ledger.finish(rank)

    @contextmanager
    def _signing(self, rank: int) -> Iterator[Callable[[str], None]]:
        settings = self.ledger.recipe.data.duplicates
        if self._signatures is None or settings is None:
            yield lambda text: None
            return
        with signature_writer(self._signatures, rank, settings) as signatures:
            yield signatures.add


class ReadAgain(Step):
    """The documents that the first round has kept of a task, without those that were there before, and without such lines."""

    name = "without duplicates"

    def __init__(self, ledger: Ledger, path_of: PathOf, before: Path, duplicates: Path, questions: Path | None) -> None:
        """`before` has the first round's counts, `duplicates` what was found between all tasks."""
        super().__init__(ledger)
        self._path_of, self._before, self._duplicates = path_of, before, duplicates
        self._decontaminate = Decontaminate(ledger, questions) if questions else None

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        task = self.ledger.begin(rank)
        counted = json.loads((self._before / f"{rank:05}.json").read_bytes())
        self.ledger.tally.add(counted["reading"])
        self.ledger.funnel.before_the_last_step(counted["funnel"])
        settings = self.ledger.recipe.data.duplicates
        assert settings
        drops = Drops.load(self._duplicates, rank, settings)
        path = self._path_of(task.source, rank)
        for index, document in enumerate(read_documents(path) if path.exists() else ()):
            self.stat_update("documents")
            with self.track_time():
                kept = self._without(document, drops.documents.get(index), drops.lines(index))
            if kept is not None:
                yield kept

    def _without(self, document: Document, drop: Drop | None, lines: np.ndarray) -> Document | None:
        if drop:
            self.ledger.funnel.drop(document, f"{drop.reason} duplicates", "said before")
            return None
        if document.text is None or not lines.size:
            return document
        gone = set(lines.tolist())
        kept = [line for number, line in enumerate(document.text.split("\n")) if number not in gone]
        text = "\n".join(kept)
        if not text.strip():
            self.ledger.funnel.drop(document, "repeated lines", "nothing else in it")
            return None
        cut = document.num_bytes - len(text.encode())
        self.ledger.funnel.cut_from("repeated lines", Counter({"said before": cut}))
        left = replace(document, text=text)
        # what stood around a line that is gone stands together now, and may be a question
        return self._decontaminate.look_at(left) if self._decontaminate else left


class Each(PipelineStep):
    """A function for each task, which is called with its number."""

    type = "Fox"

    def __init__(self, name: str, function: Callable[[int], None]) -> None:
        self.name = name
        super().__init__()
        self._function = function

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        with self.track_time():
            self._function(rank)
