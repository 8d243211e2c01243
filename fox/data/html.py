"""The main text of a web page. Needs resiliparse, which is imported only here and only when it is used."""

from __future__ import annotations

from typing import Any

from fox.data.quarantine import BadRecord

MAX_DEPTH = 512
"""Elements within elements; Chromium stops there too. resiliparse's time grows with the square: 8,000 take a second."""

MANY_TAGS = 10_000
"""Only pages with more are measured, for that takes longer than the reading itself; fewer can't take long."""


def main_text(page: str) -> str:
    """The text of `page` without its menus, headers and footers; empty where none is left. Raises BadRecord."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    try:
        tree = HTMLTree.parse(page)
        if page.count("<") > MANY_TAGS and _is_deeper(tree.document, MAX_DEPTH):
            raise BadRecord(f"HTML is nested deeper than {MAX_DEPTH}", page[:1000])
        return extract_plain_text(tree, main_content=True)
    except (RuntimeError, ValueError) as error:
        raise BadRecord("HTML can't be parsed", str(error)) from None


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
