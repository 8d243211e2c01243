"""A web page, as a stranger wrote it, becomes text with its title, date, language and licence. Needs resiliparse."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple

from fox.data.quarantine import BadRecord
from fox.data.web.main_text import main_text
from fox.data.web.metadata import date_of, language_of, license_of, title_of

MAX_DEPTH = 512
"""Elements within elements; Chromium stops there too. resiliparse's time grows with the square: 8,000 take a second."""

MANY_TAGS = 10_000
"""Only pages with more are measured, for that takes longer than the reading itself; fewer can't take long."""


class Extract(NamedTuple):
    """What is kept of a page. What a page does not tell of itself is empty."""

    text: str
    title: str
    date: str
    """When it was published or changed last, as YYYY-MM-DD."""
    language: str
    """As the page's author has it: a language tag of BCP 47, in lower case."""
    license: str = ""
    """The terms that it links as its own."""


def extract(page: str) -> Extract:
    """The main text of an HTML page and what it says of itself. Raises BadRecord."""
    from resiliparse.parse.html import HTMLTree

    try:
        tree = HTMLTree.parse(page)
        if tree.document is None:
            return Extract("", "", "", "")
        if page.count("<") > MANY_TAGS and _may_be_deeper(page, MAX_DEPTH) and _is_deeper(tree.document, MAX_DEPTH):
            raise BadRecord(f"HTML is nested deeper than {MAX_DEPTH}", page[:1000])
        title, date, language, terms = title_of(tree), date_of(tree), language_of(tree), license_of(tree)
        return Extract(main_text(tree), title, date, language, terms)
    except (RuntimeError, ValueError) as error:
        raise BadRecord("HTML can't be parsed", str(error)) from None


_TAG = re.compile(
    r"<(/?)(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr)\b)([a-zA-Z][a-zA-Z0-9]*)"
)


def _may_be_deeper(page: str, limit: int) -> bool:
    """Whether more tags may be open at once: counted quickly, by name, and as if none closed another than itself."""
    depth, opened = 0, Counter[str]()
    for closes, name in _TAG.findall(page):
        if not closes:
            opened[name] += 1
            depth += 1
            if depth > limit:
                return True
        elif opened[name] > 0:
            opened[name] -= 1
            depth -= 1
    return False


def _is_deeper(root: Any, limit: int) -> bool:
    node, depth = root, 0
    while True:
        if node.first_child is not None:
            node, depth = node.first_child, depth + 1
            if depth > limit:
                return True
            continue
        while node.next is None:
            node, depth = node.parent, depth - 1
            if depth <= 0:
                return False
        node = node.next
