"""Encoding by looking words up: the ids that the tokenizers library gives, without asking it twice for the same word.

A byte-level tokenizer cuts a text into words and encodes each without regard to the others, and most words of a text have been there before. So
text is cut by a pattern (`word_patterns`), each word's ids are looked up, and only the words that are new go to the library, all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models, pre_tokenizers

from fox.tokenizer.word_patterns import SAFE_CUT, word_pattern

Ids = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
_Kind = TypeVar("_Kind", bound=np.generic)

STRETCH = 1_000_000
"""Characters that are cut into words at a time: a word is an object of some 60 bytes while it is looked up."""

MOST_WORDS = 1 << 19
MOST_CHARACTERS = 1 << 25
"""What is remembered, some 150 MB at most; then all is forgotten. Common words are back at once, and the others are why it was full."""

_TOGETHER = 128
"""New words in one call's piece of work: few enough for all cores to have some, enough for what the library does around each."""

_NEVER = 1 << 31
"""In place of a token's length, where a word's ids could not be told by it."""


class WordTable:
    """The words met so far, with their ids. Not for several threads at once."""

    def __init__(self, backend: tokenizers.Tokenizer, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._library = tokenizers.Tokenizer(backend.model)  # the same model, not a copy
        self._library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._token_bytes: Counts = np.zeros(backend.get_vocab_size(), dtype=np.int64)
        self._rows = _Rows()
        self._starts: Counts = np.zeros(1, dtype=np.int64)  # where each row's ids begin; and the end of the last one's
        self._ids: Ids = np.empty(0, dtype=np.uint32)
        self._characters = 0

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> WordTable | None:
        """A table for this tokenizer. None where its words depend on more than themselves, or are cut by a rule that isn't known here."""
        model = backend.model
        if not isinstance(model, models.BPE) or model.dropout or model.byte_fallback:
            return None
        if model.continuing_subword_prefix or model.end_of_word_suffix or backend.normalizer is not None:
            return None
        # Special tokens are found in no text (Tokenizer sees to it); others are, before it is cut into words.
        if not all(token.special for token in backend.get_added_tokens_decoder().values()):
            return None
        if backend.truncation is not None or backend.padding is not None or not backend.encode_special_tokens:
            return None
        pattern = word_pattern(backend.pre_tokenizer)
        return None if pattern is None else cls(backend, pattern)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text. Raises what the library raises: TypeError for half a character."""
        parts: list[list[Ids]] = [[] for _ in texts]
        for stretch in _stretches(texts):
            words = [self._pattern.findall(piece) for _, piece in stretch]
            for (number, _), ids in zip(stretch, self._encode(words), strict=True):
                parts[number].append(ids)
        return [one[0] if len(one) == 1 else np.concatenate(one) for one in parts]

    def _encode(self, texts: list[list[str]]) -> Iterator[Ids]:
        lengths = [len(words) for words in texts]
        row = self._rows.__getitem__
        try:
            rows = np.fromiter(map(row, chain.from_iterable(texts)), dtype=np.int64, count=sum(lengths))
            if self._rows.new:
                self._learn(self._rows.new)
        except BaseException:
            self._forget()  # or these words would be known, and have no ids
            raise
        first, counts = self._starts[rows], self._starts[rows + 1] - self._starts[rows]
        ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
        places = np.repeat(first - ends[:-1], counts)
        places += np.arange(places.size)
        ids = self._ids[places]
        if len(self._rows) > MOST_WORDS or self._characters > MOST_CHARACTERS:
            self._forget()
        start = 0
        for length in lengths:
            yield ids[ends[start] : ends[start + length]]
            start += length

    def _learn(self, new: list[str]) -> None:
        """Ask the library for the ids of new words, and remember them."""
        ids, counts = self._ids_of(new)
        old, size = len(self._rows) - len(new), self._starts[len(self._rows) - len(new)]
        self._starts = _with_room(self._starts, len(self._rows) + 1)
        self._starts[old + 1 : len(self._rows) + 1] = size + np.cumsum(counts)
        self._ids = _with_room(self._ids, int(size) + ids.size)
        self._ids[size : size + ids.size] = ids
        self._characters += sum(map(len, new))
        self._rows.new = []

    def _ids_of(self, new: list[str]) -> tuple[Ids, Counts]:
        """The ids of all these words in a row, and how many each has."""
        # Asked for one by one, a word costs thrice the time. Together their ids come in a row; but a token is as long as its bytes, and so is a word.
        words = iter(new)
        groups = list(iter(lambda: list(islice(words, _TOGETHER)), []))
        encodings = self._library.encode_batch_fast(groups, is_pretokenized=True, add_special_tokens=False)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype=np.uint32)
        token_ends = np.cumsum(self._bytes_of(ids))
        word_ends = np.cumsum([len(word.encode()) for word in new])
        if ids.size and token_ends[-1] == word_ends[-1]:
            return ids, np.diff(np.searchsorted(token_ends, word_ends), prepend=-1)
        # Some byte has no token, so that the tokens are not as long as the words.
        encodings = self._library.encode_batch_fast(new, add_special_tokens=False)
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), dtype=np.uint32)
        return ids, np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)

    def _bytes_of(self, ids: Ids) -> Counts:
        """How many bytes of text each of these tokens stands for: one a letter, in a byte-level vocabulary."""
        if ids.size:
            self._token_bytes = _with_room(self._token_bytes, int(ids.max()) + 1)
        unk = self._library.model.unk_token
        for token_id in np.unique(ids[self._token_bytes[ids] == 0]).tolist():
            token = self._library.id_to_token(token_id)
            self._token_bytes[token_id] = len(token) if token and token != unk else _NEVER
        return self._token_bytes[ids]

    def _forget(self) -> None:
        self._rows = _Rows()
        self._starts = np.zeros(1, dtype=np.int64)
        self._ids = np.empty(0, dtype=np.uint32)
        self._characters = 0


class _Rows(dict[str, int]):
    """A number for each word, in the order in which they were met; `new` are those whose ids aren't known yet."""

    def __init__(self) -> None:
        super().__init__()
        self.new: list[str] = []

    def __missing__(self, word: str) -> int:
        row = self[word] = len(self)
        self.new.append(word)
        return row


def _with_room(array: npt.NDArray[_Kind], size: int) -> npt.NDArray[_Kind]:
    if size <= array.size:
        return array
    larger = np.zeros(max(size, 2 * array.size), dtype=array.dtype)
    larger[: array.size] = array
    return larger


def _stretches(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """The texts, by their numbers: short ones together, long ones in pieces that can be encoded each for itself."""
    stretch: list[tuple[int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            stretch.append((number, piece))
            size += len(piece)
            if size >= STRETCH:
                yield stretch
                stretch, size = [], 0
    if stretch:
        yield stretch


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > STRETCH and (cut := SAFE_CUT.search(text, start + STRETCH)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:] if start else text
