"""Gopher's quality rules (arXiv 2112.11446, appendix A.1.1): is a document running text, by the number and the look of its words and lines?

They were made for English. Stop words are asked for where the language is English. How long words are on average is not asked where words are
counted by characters or are short by nature: Chinese, Japanese, Korean, and the languages of South-East Asia that write no spaces.
"""

from __future__ import annotations

import numpy as np

from fox.data.filters.page import Page
from fox.data.filters.words import HAS_LETTER

MIN_WORDS, MAX_WORDS = 50, 100_000
MIN_MEAN_LENGTH, MAX_MEAN_LENGTH = 3, 10
MAX_SYMBOLS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_WORDS_WITH_LETTER = 0.8
MIN_STOP_WORDS = 2

_STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_OTHER_LENGTHS = frozenset(("zh", "yue", "wuu", "ja", "ko", "th", "lo", "my", "km", "dz"))
_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


def fault(page: Page) -> str:
    """Why the page is no good text; empty where it is."""
    text, counted = page.text, page.counted_lengths
    if counted.size < MIN_WORDS:
        return f"fewer than {MIN_WORDS} words"
    if counted.size > MAX_WORDS:
        return f"more than {MAX_WORDS} words"
    if page.language not in _OTHER_LENGTHS:
        mean = counted.sum() / counted.size
        if mean < MIN_MEAN_LENGTH:
            return f"words shorter than {MIN_MEAN_LENGTH} characters"
        if mean > MAX_MEAN_LENGTH:
            return f"words longer than {MAX_MEAN_LENGTH} characters"
    words = len(page.words)
    if text.count("#") > MAX_SYMBOLS_PER_WORD * words:
        return "too many hash signs"
    if sum(map(text.count, _ELLIPSES)) > MAX_SYMBOLS_PER_WORD * words:
        return "too many ellipses"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(_BULLETS) for line in lines) > MAX_BULLET_LINES * len(lines):
        return "mostly bullet points"
    if sum(line.rstrip().endswith(_ELLIPSES) for line in lines) > MAX_ELLIPSIS_LINES * len(lines):
        return "lines end in ellipses"
    if np.count_nonzero(page.kinds & HAS_LETTER) < MIN_WORDS_WITH_LETTER * words:
        return "too few words with letters"
    if page.language == "en" and len(_STOP_WORDS.intersection(page.words)) < MIN_STOP_WORDS:
        return "too few stop words"
    return ""
