"""Words and phrases that a document must not have, as in C4 (arXiv 1910.10683, section 2.2): as whole words, whatever their case.

An entry in a script that writes no spaces is found wherever it stands, as in C4 for Chinese, Japanese and Thai; so a short one is found within other
words, too. A document's words are held against the entries' first; only entries of which all words are there are looked for in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice

from fox.data.filters.words import LONGEST_REMEMBERED, MARKS, REMEMBERED, has_unspaced

_WORD = re.compile(rf"[\w{MARKS}]+")


class BadWords:
    """A list of words and phrases, ready to be counted in texts."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Entries are as `bad_word` gives them."""
        self._phrases: dict[str, list[_Phrase]] = {}
        """By their first word."""
        self._unspaced: dict[str, set[str]] = {}
        """By their first character."""
        for entry in dict.fromkeys(entries):
            if has_unspaced(entry):
                self._unspaced.setdefault(entry[0], set()).add(entry)
            else:
                phrase = _Phrase(entry)
                self._phrases.setdefault(phrase.words[0], []).append(phrase)
        self._known = _Known(word for phrases in self._phrases.values() for phrase in phrases for word in phrase.words)
        self._beginning = re.compile(f"[{re.escape(''.join(self._unspaced))}]") if self._unspaced else None

    def count(self, text: str, enough: int) -> int:
        """How often entries are found in a text; it is counted no further than `enough`."""
        return sum(1 for _ in islice(self._found(text), enough))

    def _found(self, text: str) -> Iterator[str]:
        words = set(chain.from_iterable(map(self._known.__getitem__, set(text.split()))))
        phrases = [
            phrase
            for word in self._phrases.keys() & words
            for phrase in self._phrases[word]
            if words.issuperset(phrase.words)
        ]
        unspaced = None if text.isascii() else self._beginning
        if phrases or unspaced:
            folded = text.casefold()
            for phrase in phrases:
                yield from (match[0] for match in phrase.pattern.finditer(folded))
            for match in unspaced.finditer(folded) if unspaced else ():
                yield from (entry for entry in self._unspaced[match[0]] if folded.startswith(entry, match.start()))


class _Phrase:
    """One entry: its words, and how it is found."""

    def __init__(self, entry: str) -> None:
        self.words = _WORD.findall(entry)
        spaced = r"\s+".join(map(re.escape, entry.split()))
        self.pattern = re.compile(rf"(?<![\w{MARKS}]){spaced}(?![\w{MARKS}])")


class _Known(dict[str, tuple[str, ...]]):
    """Which of the entries' words each piece of text has that has no space in it."""

    def __init__(self, words: Iterable[str]) -> None:
        super().__init__()
        self._words = frozenset(words)

    def __missing__(self, piece: str) -> tuple[str, ...]:
        words = tuple(self._words.intersection(_WORD.findall(piece.casefold())))
        if len(piece) <= LONGEST_REMEMBERED:
            if len(self) >= REMEMBERED:
                self.clear()
            self[piece] = words
        return words


def bad_word(line: str) -> str:
    """An entry of a list. Raises ValueError where a line is none."""
    entry = " ".join(line.casefold().split())
    if not _WORD.search(entry):
        raise ValueError("has no letter or digit")
    return entry
