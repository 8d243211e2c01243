"""Documents to learn a score from: as their features alone, each once, and never more than memory has room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fox.data.document import Document
from fox.data.files import ARCHIVES, PAGES, ROWS, SourceFile, files_named, hashes_named
from fox.data.quality.score import features_of
from fox.data.quarantine import Tally
from fox.data.rows import require_readers
from fox.data.sources import read_files
from fox.errors import UserError
from fox.recipe.schema import Source

MOST = 20_000
"""Examples of a kind; of more, those with the lowest hashes. Of two kinds with 2,000 features each, the most there can
be, it takes 1.4 GB and 40 s to learn (measured), and of pages of the usual length a third of that."""

FEWEST = 20
"""Examples of a kind: from fewer nothing can be learnt and measured."""


_MEND = "Name files of documents, in any format of a source, or a glob of them."


class Examples(NamedTuple):
    """Documents in the order of their hashes."""

    hashes: np.ndarray
    """(uint64) Of each one's content."""
    lengths: np.ndarray
    """(uint32) How many features each has."""
    features: np.ndarray
    """(uint32) Those of one after those of the other."""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, array in self._asdict().items():
            np.save(path.with_name(f"{path.name}.{name}.npy"), array, allow_pickle=False)

    @classmethod
    def load(cls, path: Path) -> Examples:
        return cls(*(np.load(path.with_name(f"{path.name}.{name}.npy"), allow_pickle=False) for name in cls._fields))


def examples_of(documents: Iterable[Document], most: int = MOST) -> Examples:
    """The documents, each once; of more than `most` those with the lowest hashes, so that they are the same in any order."""
    known: dict[int, np.ndarray] = {}
    limit = 2**64
    for document in documents:
        number = hash_of(document)
        if number < limit and number not in known:
            known[number] = features_of(document.content)
            if len(known) >= 2 * most:
                known = {number: known[number] for number in sorted(known)[:most]}
                limit = max(known)
    return _joined({number: known[number] for number in sorted(known)[:most]})


def together(parts: Sequence[Examples], without: Examples) -> Examples:
    """Those of many tasks as one, without those that are in `without`, too."""
    known = {number: features for part in parts for number, features in _each(part)}
    for number in without.hashes.tolist():
        known.pop(number, None)
    return _joined(dict(sorted(known.items())))


def hash_of(document: Document) -> int:
    """A number below 2**64 by which examples are drawn: of another part of the digest than what is held out from training."""
    return int.from_bytes(document.digest[16:24], "big")


def example_files(key: str, patterns: Sequence[str]) -> list[SourceFile]:
    """The files that `data.quality.good` or `.bad` names. Raises UserError where a pattern names none, or one that Fox doesn't read."""
    return files_named(key, patterns, (*PAGES, *ROWS, *ARCHIVES, ".parquet"), _MEND)


def example_hashes(key: str, patterns: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of each of these files. Raises UserError where one can't be read."""
    return hashes_named(key, example_files(key, patterns), _MEND)


def read_examples(key: str, patterns: Sequence[str]) -> tuple[Examples, Tally]:
    """The examples in the files that a key names, and what of these files could not be used. Raises UserError where they are too few."""
    name = key.rpartition(".")[2]
    source = Source(path=key)
    tally = Tally(name, source)
    files = example_files(key, patterns)
    require_readers(name, files)
    examples = examples_of(read_files(name, source, files, tally))
    bad = "; ".join(f"{count} x {reason}" for reason, count in tally.bad.most_common(3))
    check_number(key, patterns, len(examples.hashes), "examples" + (f" beside {bad}" if bad else ""))
    return examples, tally


def check_number(key: str, patterns: Sequence[str], number: int, what: str) -> None:
    """Raise UserError where there are too few different examples of a kind."""
    if number < FEWEST:
        mend = "Name more, or longer lists; a long text can be cut into several files."
        raise UserError(
            key, list(patterns), problem=f"leaves {number} different {what}, and {FEWEST} are needed", mend=mend
        )


def _each(examples: Examples) -> Iterator[tuple[int, np.ndarray]]:
    ends = np.cumsum(examples.lengths, dtype=np.int64)
    return zip(examples.hashes.tolist(), np.split(examples.features, ends[:-1]), strict=True) if ends.size else iter(())


def _joined(known: dict[int, np.ndarray]) -> Examples:
    lengths = np.array([features.size for features in known.values()], dtype=np.uint32)
    empty = np.empty(0, dtype=np.uint32)
    return Examples(np.array(list(known), dtype=np.uint64), lengths, np.concatenate([*known.values(), empty]))
