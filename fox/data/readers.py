"""Where documents to learn from come from: the sources as they are, or the corpus that was made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from fox.data.corpus.store import files_of_corpus, read_documents
from fox.data.decontaminate import Hits, Questions
from fox.data.document import Document
from fox.data.personal import mask_document
from fox.data.quarantine import Tally
from fox.data.sources import read_source
from fox.recipe import Recipe


class Reader(Protocol):
    """Reads a source's documents, always the same ones in the same order."""

    def read(self, name: str) -> Iterator[Document]: ...

    def facts(self, name: str) -> dict[str, Any]:
        """`reading` (a Tally's) and `contaminated` (Hits), of a source that was read to its end."""
        ...


class SourceReader:
    """The sources themselves, without the personal data that the recipe names, and without documents that hold one of the `questions`."""

    def __init__(self, recipe: Recipe, questions: Questions | None = None) -> None:
        self._recipe, self._questions = recipe, questions
        self._facts: dict[str, dict[str, Any]] = {}

    def read(self, name: str) -> Iterator[Document]:
        source = self._recipe.source[name]
        tally, hits = Tally(name, source), Hits()
        for whole in read_source(name, source, tally):
            if self._questions and (file := self._questions.file_with(whole.content)):
                hits.add(file, whole.place)
                continue
            document, found = mask_document(whole, self._recipe.data.mask_personal)
            tally.masked.update(found)
            yield document
        self._facts[name] = {"reading": tally.as_dict(), "contaminated": hits.as_dict()}

    def facts(self, name: str) -> dict[str, Any]:
        return self._facts[name]


class CorpusReader:
    """A corpus, from which all that is gone already."""

    def __init__(self, folder: Path, facts: Mapping[str, dict[str, Any]]) -> None:
        self._folder, self._facts = folder, facts

    def read(self, name: str) -> Iterator[Document]:
        for path in files_of_corpus(self._folder, name):
            yield from read_documents(path)

    def facts(self, name: str) -> dict[str, Any]:
        return {key: self._facts[name][key] for key in ("reading", "contaminated")}
