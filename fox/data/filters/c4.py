"""C4's rules (arXiv 1910.10683, section 2.2): only lines that are sentences stay, and only pages with some of them and without code.

What its published code does beyond the paper is done here, too, as datatrove does it: lines with a word of 1000 characters go, those about cookies and
terms of use, and marks of citations. A line may end in any script's sign for it, and in a typographic quotation mark; where a script writes no
spaces, its words are counted as everywhere here. Bad words have a step of their own (fox/data/filters/bad_words.py).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from fox.data.filters.sentences import ENDS, sentences_in
from fox.data.filters.words import has_unspaced, words_of

MIN_SENTENCES = 5
MIN_WORDS_PER_LINE = 3
MAX_WORD_LENGTH = 1000

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_LAST = ENDS | frozenset("\"'”’»」』")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class Cleaned(NamedTuple):
    """What is left of a text."""

    text: str
    fault: str
    """Why the page as a whole is dropped; empty where it is not."""
    cut: Counter[str]
    """Bytes that were cut, by reason."""


def clean(text: str) -> Cleaned:
    """The text without the lines that are no sentences."""
    lowered = text.lower()
    may_be_placeholder, may_be_script = "lorem ipsum" in lowered, "javascript" in lowered
    may_be_policy = any(phrase in lowered for phrase in _POLICY)
    kept, cut, sentences = [], Counter[str](), 0
    for whole_line in text.splitlines():
        line = whole_line.strip()
        if not line:
            continue
        if reason := _fault_of_form(line):
            cut[reason] += _bytes(line) + 1
            continue
        without = _CITATION.sub("", line).strip() if "[" in line else line
        if without[-1:] not in _LAST or without.endswith("..."):
            cut["no end of a sentence"] += _bytes(line) + 1
            continue
        if may_be_placeholder and "lorem ipsum" in without.lower():
            return Cleaned(text, "lorem ipsum", Counter())
        if may_be_script and "javascript" in without.lower():
            cut["JavaScript"] += _bytes(line) + 1
            continue
        if "{" in without:
            return Cleaned(text, "a curly bracket", Counter())
        if may_be_policy and any(phrase in without.lower() for phrase in _POLICY):
            cut["cookies and terms of use"] += _bytes(line) + 1
            continue
        if sentences < MIN_SENTENCES:
            sentences += sentences_in(without, MIN_SENTENCES)
        kept.append(without)
    if sentences < MIN_SENTENCES:
        return Cleaned(text, f"fewer than {MIN_SENTENCES} sentences", Counter())
    left = "\n".join(kept).strip()
    if rest := _bytes(text) - _bytes(left) - cut.total():
        cut["citations and space around lines"] = rest
    return Cleaned(left, "", cut)


def _fault_of_form(line: str) -> str:
    words = line.split()
    if len(line) > MAX_WORD_LENGTH and max(map(len, words)) > MAX_WORD_LENGTH:
        return f"a word of more than {MAX_WORD_LENGTH} characters"
    if len(words) < MIN_WORDS_PER_LINE and not (has_unspaced(line) and len(words_of(line)) >= MIN_WORDS_PER_LINE):
        return f"fewer than {MIN_WORDS_PER_LINE} words"
    return ""


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
