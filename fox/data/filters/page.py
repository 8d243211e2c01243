"""A document as the rules see it. What several of them ask for is computed once, and only where one asks."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from fox.data.filters.words import COUNTS, kinds_of, words_of

LONGEST_PAGE = 8 * 2**20
"""In characters. The Bible has half as many; of a longer text the rules see the beginning, so that no text takes more than some 400 MB to judge."""


class Page:
    """The plain text of a document, and the language that it is taken for."""

    def __init__(self, text: str, language: str = "en") -> None:
        self.text = text[:LONGEST_PAGE]
        self.language = language

    @cached_property
    def words(self) -> list[str]:
        """Punctuation included (fox/data/filters/words.py)."""
        return words_of(self.text)

    @cached_property
    def kinds(self) -> np.ndarray:
        """The kind of each word."""
        return kinds_of(self.words)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The characters of each word."""
        return self.kinds >> 2

    @cached_property
    def counted_lengths(self) -> np.ndarray:
        """The same of the words that are no punctuation."""
        return self.lengths[self.kinds & COUNTS > 0]
