"""Gopher's repetition rules (arXiv 2112.11446, table A1): how much of a document is there twice, in lines, paragraphs and runs of words?

Where the paper leaves a choice, it is datatrove's: the top run of words is the one that comes most often (of two, the one that comes first), and counts
with the spaces between its words; of repeated runs, those that overlap one that was counted are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from fox.data.filters.page import Page

MAX_LINES = MAX_PARAGRAPHS = 0.3
MAX_LINE_CHARACTERS = MAX_PARAGRAPH_CHARACTERS = 0.2
MAX_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
"""Characters of the run of so many words that comes most often, as a share of the text."""
MAX_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Characters of all runs of so many words that were there before, as a share of the text."""

_PARAGRAPH_END = re.compile(r"\n{2,}")
_LINE_END = re.compile(r"\n+")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it can be divided by: no word's place is lost in the product


def fault(page: Page) -> str:
    """What is repeated too much in the page; empty where nothing is."""
    text = page.text
    size = len(text)
    for parts, name, most, most_characters in (
        (_PARAGRAPH_END.split(text.strip()), "paragraphs", MAX_PARAGRAPHS, MAX_PARAGRAPH_CHARACTERS),
        (_LINE_END.split(text), "lines", MAX_LINES, MAX_LINE_CHARACTERS),
    ):
        repeated, characters = repeated_parts(parts)
        if repeated > most * len(parts) or characters > most_characters * size:
            return f"repeated {name}"
    runs = _Runs(page)
    for length, share in MAX_TOP.items():
        if runs.top(length, share * size) > share * size:
            return f"one run of {length} words again and again"
    for length, share in MAX_REPEATED.items():
        if runs.repeated(length, share * size) > share * size:
            return f"repeated runs of {length} words"
    return ""


def repeated_parts(parts: list[str]) -> tuple[int, int]:
    """How many of the parts were there before, and their characters."""
    distinct = dict.fromkeys(parts)
    repeated = len(parts) - len(distinct)
    return repeated, sum(map(len, parts)) - sum(map(len, distinct)) if repeated else 0


class _Runs:
    """Runs of a page's words, each as one number. Lengths are asked for from the shortest up."""

    def __init__(self, page: Page) -> None:
        count, self._size, self._lengths = len(page.words), len(page.text), page.lengths
        self._words = np.fromiter(map(hash, page.words), dtype=np.int64, count=count).view(np.uint64)
        self._begins = np.zeros(count + 1, dtype=np.int64)  # of each word, in characters without the spaces
        np.cumsum(page.lengths, out=self._begins[1:])
        self._numbers = self._words
        self._length = 1
        self._may_be_repeated = True

    def top(self, length: int, most: float) -> int:
        """Characters of the run that comes most often, times how often it comes; 0 where it can't be more than `most`."""
        numbers, characters = self._runs(length), self._characters(length) + length - 1
        if not numbers.size:
            return 0
        most_often = _longest_stretch(np.sort(numbers))
        if most_often * characters.max() <= most:
            return 0
        _, first, counts = np.unique(numbers, return_index=True, return_counts=True)
        return int(characters[first[counts == most_often].min()]) * most_often

    def repeated(self, length: int, most: float) -> int:
        """Characters of the runs that were there before; 0 where they can't be more than `most`."""
        numbers, characters = self._runs(length), self._characters(length)
        if not self._may_be_repeated or _longest_stretch(np.sort(numbers)) < 2:
            self._may_be_repeated = False  # nor is a longer run, which has shorter ones in it
            return 0
        order = np.argsort(
            numbers, kind="stable"
        )  # of the same runs the first one stays the first, and is not there again
        ordered = numbers[order]
        is_again = np.zeros(order.size, dtype=bool)
        is_again[1:] = ordered[1:] == ordered[:-1]
        again = order[is_again]
        if length == min(MAX_REPEATED) and self._covered(again, length) <= min(MAX_REPEATED.values()) * self._size:
            self._may_be_repeated = False  # enough: all that longer runs have twice is among this
            return 0
        if characters[again].sum() <= most:
            return 0
        which = np.empty(order.size, dtype=np.int64)
        which[order] = np.cumsum(~is_again)
        return _not_overlapping(zip(which.tolist(), characters.tolist(), strict=True), length)

    def _covered(self, places: np.ndarray, length: int) -> int:
        """Characters of the words that are in one of the runs at these places."""
        covered = np.zeros(self._words.size, dtype=bool)
        for word in range(length):
            covered[places + word] = True
        return int(self._lengths[covered].sum())

    def _runs(self, length: int) -> np.ndarray:
        while self._length < length:
            self._numbers = self._numbers[:-1] * _BASE + self._words[self._length :]
            self._length += 1
        return self._numbers

    def _characters(self, length: int) -> np.ndarray:
        return self._begins[length:] - self._begins[:-length]


def _longest_stretch(ordered: np.ndarray) -> int:
    """How often the number that comes most often comes in a sorted array."""
    if not ordered.size:
        return 0
    ends = np.flatnonzero(ordered[1:] != ordered[:-1])
    return int(np.diff(ends, prepend=-1, append=ordered.size - 1).max())


def _not_overlapping(runs: Iterable[tuple[int, int]], length: int) -> int:
    """Characters of the runs (which, characters) that were seen before, each beginning behind the one before."""
    seen, total, free = set[int](), 0, 0
    for place, (which, characters) in enumerate(runs):
        if place < free:
            continue
        if which in seen:
            total += characters
            free = place + length
        else:
            seen.add(which)
    return total
