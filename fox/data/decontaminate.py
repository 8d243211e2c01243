"""Documents that hold what a model will be asked in an evaluation are left out, so that its answers are no memories.

As in GPT-3 (arXiv 2005.14165, appendix C), a document is contaminated where it has 13 words in a row of a question or an answer; words are compared without case,
punctuation and space. A shorter text counts as a whole: from 8 words on, a question (its key or its last character tells) from 4. What is shorter still is
found in every book ("all of the above") and tells nothing. In a text with a blank, `_`, the other texts of its row are tried, too.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fox.artifacts import write_json
from fox.data.files import ROWS, SourceFile, files_named, hashes_named
from fox.data.quarantine import BadRecord
from fox.data.rows import rows_of
from fox.errors import UserError
from fox.progress import Meter

_KEY = "data.decontaminate"
_MEND = "Name files of questions (.jsonl or .json, also .gz or .zst), or a glob of them."

GRAM_WORDS = 13
MIN_WORDS = 8
MIN_QUESTION_WORDS = 4

_QUESTION_KEYS = ("question", "query", "prompt", "problem", "instruction", "ctx", "context", "sentence", "goal")
"""Under which evaluation sets keep what is asked."""

_WORD = re.compile(r"[^\W_]+")
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])
"""Signs that a page may have within words, and that nobody sees: soft hyphens, joiners and such."""
_BLANK = re.compile(r"(?<!\w)_+(?!\w)")
_BASE = 0x9E3779B97F4A7C15  # odd, so that it can be divided by: no word's place is lost in the product

_LABELS = "labels.json"

_SIEVE_BITS = 24
"""Of the largest sieve: most of a text's runs of words are ruled out by one look into so much memory, where a search takes twenty."""

FIRST_PLACES = 5
"""How many contaminated documents of each file of questions are named."""


@dataclass
class Hits:
    """Which documents were left out, by the file of questions."""

    documents: Counter[str] = field(default_factory=Counter)
    first_places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, file: str, place: str) -> None:
        self.documents[file] += 1
        places = self.first_places.setdefault(file, [])
        if len(places) < FIRST_PLACES:
            places.append(place)

    def as_dict(self) -> dict[str, Any]:
        return {"documents": dict(self.documents.most_common()), "first_places": self.first_places}


class _Known(NamedTuple):
    """Runs of words of one length, sorted; the number of a file that each is from; and what tells quickly that another is none of them."""

    grams: np.ndarray
    owners: np.ndarray
    sieve: np.ndarray


class Questions:
    """The texts of evaluation files, as the hashes of their runs of words."""

    def __init__(self, files: Sequence[SourceFile], meter: Meter) -> None:
        """Hits are told by the files' labels. Raises UserError where a file can't be read."""
        self._labels = [file.label for file in files]
        grams: dict[int, list[np.ndarray]] = {}
        owners: dict[int, list[np.ndarray]] = {}
        for number, file in enumerate(files):
            for text, is_question in _texts(file):
                words = words_of(text)
                if length := _compared_words(words, is_question):
                    found = grams_of(words, length)
                    grams.setdefault(length, []).append(found)
                    owners.setdefault(length, []).append(np.full(found.size, number, dtype=np.uint32))
            meter.advance(1, note=file.label)
        self._known: dict[int, _Known] = {}
        for length, parts in grams.items():
            known, first = np.unique(np.concatenate(parts), return_index=True)
            self._known[length] = _Known(known, np.concatenate(owners[length])[first], _sieve_of(known))

    def save(self, folder: Path) -> None:
        """Keep them in a folder, for processes that `load` them."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _LABELS, self._labels)
        for length, known in self._known.items():
            for name, array in known._asdict().items():
                np.save(folder / f"{length}.{name}.npy", array, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Questions:
        """Those that were saved, memory-mapped: all processes of a machine share them."""
        questions = cls([], Meter("questions", 0, "files"))
        questions._labels = json.loads((folder / _LABELS).read_bytes())
        for length in {int(path.name.partition(".")[0]) for path in folder.glob("*.npy")}:
            arrays = [folder / f"{length}.{name}.npy" for name in _Known._fields]
            questions._known[length] = _Known(*(np.load(path, mmap_mode="r", allow_pickle=False) for path in arrays))
        return questions

    def file_with(self, text: str) -> str | None:
        """The label of a file that has a question or an answer which `text` holds, or None."""
        words = words_of(text)
        grams = words.copy()
        for length in range(1, 1 + max(self._known, default=0)):
            if length > 1:  # as grams_of has it, one word longer
                grams = grams[: words.size - length + 1] * np.uint64(_BASE) + words[length - 1 :]
            if length not in self._known or not grams.size:
                continue
            known = self._known[length]
            may_be = known.sieve[_first_bits(grams, known.sieve.size)]
            if not may_be.any():
                continue
            sieved = grams[may_be]
            places = np.searchsorted(known.grams, sieved)
            places[places == known.grams.size] = 0
            if (hits := np.flatnonzero(known.grams[places] == sieved)).size:
                return self._labels[known.owners[places[hits[0]]]]
        return None


def question_files(patterns: Sequence[str]) -> list[SourceFile]:
    """The files that `data.decontaminate` names, each once. Raises UserError where a pattern names none, or one of another kind."""
    return files_named(_KEY, patterns, ROWS, _MEND)


def hashes_of(files: Sequence[SourceFile]) -> dict[str, str]:
    """The SHA-256 of each file, by its place in the list and its label. Raises UserError where one can't be read."""
    return hashes_named(_KEY, files, _MEND)


def _texts(file: SourceFile) -> Iterator[tuple[str, bool]]:
    """(text, whether it is a question) for each text of each row, also with a blank filled by the other texts of its row."""
    try:
        for place, value in rows_of(file, "text"):
            if isinstance(value, BadRecord):
                raise _unreadable(file, f"{place}: {value.reason}")
            texts = list(_strings(value))
            for text, is_question in texts:
                yield text, is_question
                parts = _BLANK.split(text)
                if len(parts) > 1:
                    yield from ((other.join(parts), is_question) for other, _ in texts if other is not text)
    except BadRecord as bad:
        raise _unreadable(file, bad.reason) from None


def _unreadable(file: SourceFile, problem: str) -> UserError:
    mend = "Mend the file, or name others: what is not read would not be kept out of the training."
    return UserError(_KEY, str(file.path), problem=problem, mend=mend)


def _strings(value: object, key: str = "") -> Iterator[tuple[str, bool]]:
    if isinstance(value, str):
        yield value, key in _QUESTION_KEYS or value.rstrip().endswith("?")
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _strings(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part, key)


def words_of(text: str) -> np.ndarray:
    """A text's words as numbers (uint64): the same for the same letters and digits, whatever stands between them."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_INVISIBLE))
    return np.fromiter(map(_number, _WORD.findall(text.casefold())), dtype=np.uint64)


def grams_of(words: np.ndarray, length: int) -> np.ndarray:
    """A number (uint64) for each run of so many words."""
    count = words.size - length + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    grams = np.zeros(count, dtype=np.uint64)
    for place in range(length):
        grams *= np.uint64(_BASE)
        grams += words[place : place + count]
    return grams


@lru_cache(maxsize=2**18)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def _sieve_of(grams: np.ndarray) -> np.ndarray:
    """Whether a gram that begins with these bits may be known: at most one place in 32 says so where there are few."""
    sieve = np.zeros(2 ** min(_SIEVE_BITS, int(grams.size).bit_length() + 5), dtype=np.bool_)
    sieve[_first_bits(grams, sieve.size)] = True
    return sieve


def _first_bits(grams: np.ndarray, size: int) -> np.ndarray:
    return grams >> np.uint64(65 - size.bit_length())


def _compared_words(words: np.ndarray, is_question: bool) -> int:
    """How many words of a text must be found in a row; 0 where it is too short to be told from any other."""
    least = MIN_QUESTION_WORDS if is_question else MIN_WORDS
    return min(GRAM_WORDS, words.size) if words.size >= least else 0
