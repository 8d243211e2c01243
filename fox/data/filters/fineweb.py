"""FineWeb's three rules (arXiv 2406.17557, section 3.6), for lists and scraps of pages: how lines end, how short they are, what comes twice.

A fourth one came with them in the code that made FineWeb, and is here, too: a document of which nearly each third word ends a line is a list.
"""

from __future__ import annotations

from fox.data.filters.page import Page
from fox.data.filters.repetition import repeated_parts
from fox.data.filters.sentences import ENDS

MIN_ENDED_LINES = 0.12
SHORT_LINE = 30
MAX_SHORT_LINES = 0.67
MAX_REPEATED_CHARACTERS = 0.01
MAX_LINES_PER_WORD = 0.3


def fault(page: Page) -> str:
    """Why the page is no good text; empty where it is."""
    text = page.text
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return "no line"
    if sum(line[-1] in ENDS for line in lines) < MIN_ENDED_LINES * len(lines):
        return "lines without punctuation"
    if sum(len(line) <= SHORT_LINE for line in lines) > MAX_SHORT_LINES * len(lines):
        return "short lines"
    ends = text.count("\n")
    if repeated_parts(lines)[1] > MAX_REPEATED_CHARACTERS * (len(text) - ends):
        return "repeated lines"
    if ends > MAX_LINES_PER_WORD * len(page.words):
        return "few words a line"
    return ""
