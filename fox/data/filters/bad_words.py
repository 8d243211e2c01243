"""Words and phrases that a document must not have, as in C4 (arXiv 1910.10683, section 2.2): as whole words, whatever their case.

An entry in a script that writes no spaces is found wherever it stands, as in C4 for Chinese, Japanese and Thai; so a short one is found within other
words, too. A document's words are held against the entries' first; only entries of which all words are there are looked for in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from fox.data.filters.words import MARKS, REMEMBERED, has_unspaced

_WORD = re.compile(rf"[\w{MARKS}]+")
_LONGEST_REMEMBERED = 48


class BadWords:
    """A list of words and phrases, ready to be counted in texts."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Entries are as `bad_word` gives them."""
        self._phrases: dict[str, list[tuple[frozenset[str], re.Pattern[str]]]] = {}
        """By their first word: the others, and the phrase to look for."""
        self._unspaced: dict[str, set[str]] = {}
        """By their first character."""
        self._remembered: dict[str, tuple[str, ...]] = {}
        for entry in dict.fromkeys(entries):
            if has_unspaced(entry):
                self._unspaced.setdefault(entry[0], set()).add(entry)
                continue
            first, *others = _WORD.findall(entry)
            spaced = r"\s+".join(map(re.escape, entry.split()))
            pattern = re.compile(rf"(?<![\w{MARKS}]){spaced}(?![\w{MARKS}])")
            self._phrases.setdefault(first, []).append((frozenset(others), pattern))
        self._beginning = re.compile(f"[{re.escape(''.join(self._unspaced))}]") if self._unspaced else None

    def count(self, text: str, enough: int) -> int:
        """How many of the entries' places a text has; it is counted no further than `enough`."""
        count = self._count_phrases(text, enough)
        return min(enough, count + self._count_unspaced(text, enough - count) if count < enough else count)

    def _count_phrases(self, text: str, enough: int) -> int:
        count, words, folded = 0, set[str](), ""
        for piece in set(text.split()):
            words.update(self._words_of(piece))
        for word in self._phrases.keys() & words:
            for others, pattern in self._phrases[word]:
                if others <= words:
                    folded = folded or text.casefold()
                    for _ in pattern.finditer(folded):
                        count += 1
                        if count >= enough:
                            return count
        return count

    def _words_of(self, piece: str) -> tuple[str, ...]:
        """The words that a piece without spaces has of those that entries have."""
        if (words := self._remembered.get(piece)) is None:
            words = tuple(_WORD.findall(piece.casefold()))
            if len(piece) <= _LONGEST_REMEMBERED:
                if len(self._remembered) >= REMEMBERED:
                    self._remembered.clear()
                self._remembered[piece] = words
        return words

    def _count_unspaced(self, text: str, enough: int) -> int:
        if self._beginning is None or text.isascii():
            return 0
        count, folded = 0, text.casefold()
        for match in self._beginning.finditer(folded):
            if any(folded.startswith(entry, match.start()) for entry in self._unspaced[match[0]]):
                count += 1
                if count >= enough:
                    break
        return count


def bad_word(line: str) -> str:
    """An entry of a list. Raises ValueError where a line is none."""
    entry = " ".join(line.casefold().split())
    if not _WORD.search(entry):
        raise ValueError("has no letter or digit")
    return entry
