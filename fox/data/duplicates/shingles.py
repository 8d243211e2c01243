"""What two documents have in common: their shingles, runs of five words (Broder 1997, "On the resemblance and containment of documents").

Words are those of fox/data/decontaminate.py: compared without case, punctuation and space; numbers stay, for tables and forms differ in nothing else.
Chinese, Japanese, Thai, Lao, Burmese and Khmer are written without spaces between words: each of their characters counts as a word.
"""

from __future__ import annotations

import re

import numpy as np

from fox.data.decontaminate import grams_of, words_of

SHINGLE_WORDS = 5
"""As in FineWeb (arXiv 2406.17557; Gopher, arXiv 2112.11446, has 13). Fewer words are shared by chance; more tell a text from its own copy in which
every tenth word is changed."""

PART_CHARACTERS = 2**20
"""So much of a text is split into words at a time: a list of all words of a long one would take some twenty times its size. A word may be cut
between two parts, the same one in every copy."""

_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")  # fmt: skip


def words_in(text: str) -> np.ndarray:
    """A text's words as numbers (uint64), also where no spaces stand between them."""
    parts = [text[start : start + PART_CHARACTERS] for start in range(0, len(text), PART_CHARACTERS)] or [""]
    words = [words_of(part if part.isascii() else _UNSPACED.sub(r" \g<0> ", part)) for part in parts]
    return np.concatenate(words)


def shingles_in(words: np.ndarray) -> np.ndarray:
    """A number (uint32) for each run of SHINGLE_WORDS words, in their order; none where there are fewer words.

    32 bits are enough for two documents: of a thousand shingles each, one in 4,000,000 is taken for another.
    """
    return (grams_of(words, SHINGLE_WORDS) >> np.uint64(32)).astype(np.uint32)


def jaccard(shingles: np.ndarray, others: np.ndarray) -> float:
    """The share of all shingles of two documents that both have. Both are sorted, each shingle once (`np.unique`)."""
    both = np.concatenate((shingles, others))
    both.sort()
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (both.size - shared) if both.size else 0.0
