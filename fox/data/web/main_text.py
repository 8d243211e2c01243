"""The main text of a web page: what its author wrote on this page, without menus, comments, teasers and notes of the site.

Three steps, all on resiliparse's tree (lexbor): drop what no page's text is in; find the element that holds most of the running text;
within it, drop blocks that are lists of links or say that they are something else. What is left is written out by resiliparse.
The rules know HTML's elements, ARIA's roles and the words that people name parts of pages by; none knows a site, a generator or a theme.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_NEVER = (
    "script, style, noscript, template, iframe, object, svg, canvas, audio, video, button, input, select, textarea, nav, dialog, [role=navigation],"
    " [role=search], [role=banner], [role=contentinfo], [role=complementary], [role=menu], [role=menubar], [role=toolbar], [role=dialog],"
    " [role=alertdialog], [role=tablist]"
)
"""What is never part of a page's text, wherever it stands (HTML Living Standard; WAI-ARIA 1.2, landmark roles)."""

_HIDDEN = "[hidden], [aria-hidden=true]"
"""What is not shown; but whole pages are hidden while they ask about cookies."""

_RUNNING = "p, pre"
"""Elements of running text."""

_RUNNING_IN_LISTS = "p, pre, li, dd, td, blockquote"
"""The same where a page has next to none of them."""

_MAIN = "main, article, [role=main]"


def _words(words: str) -> re.Pattern[str]:
    """These as whole words of a class or an id, or before what people write in one with them; a number may follow."""
    return re.compile(
        rf"(?:^|[\s_-])(?:{words})(?:area|bar|box|cloud|data|form|list|wrap)?\d*(?=$|[\s_-])", re.IGNORECASE
    )


_ELSEWHERE = _words("comments?|side-?bar|related|reply|trackbacks?|pingbacks?|teasers?")
"""In a class or an id: what others wrote, or what stands beside the text. There may be more of it than of the text."""

_ASIDE = _words(
    "ads?|advert|advertisement|banner|breadcrumbs?|byline|captcha|cookies?|copyright|footer|foot|imprint|licen[cs]e|logo|masthead|menu|meta|nav|navi|"
    "navigation|newsletter|pager|paging|pagination|permalink|popup|promo|ratings?|recommended|recommendations|rss|search|shar(?:e|ed|ing)|sitename|"
    "skip|social|sponsor(?:ed)?|subscribe|subscription|subnav|submenu|tags|tagline|toolbar|trackback|widgets?"
)
"""What is about the page or the site. Words are as people write them."""

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

MAX_ELSEWHERE_SHARE = 0.9
MAX_ASIDE_SHARE = 0.3
"""A part with more of the page's running text than this is no aside, whatever it is called: pages are wrapped in elements of any name."""

MIN_RUNNING_SHARE = 0.2
"""So much of a page must be running text, for that to tell where its main part is."""

MIN_MAIN_SHARE = 0.95
"""The main part is the innermost that has so much of its parent's running text."""

MAX_LINK_SHARE = 0.6
"""Parts with more of their characters in links are lists of links."""

MIN_TEASERS = 3
"""So many side by side are a list of teasers; a text may have two parts whose headings are links."""

_PARTS = "div, section, article, main, header, footer, aside, form, fieldset, ul, ol, dl, li, table, tr, td, p, h1, h2, h3, h4, h5, h6, figure, details, center"
"""Elements that may be an aside. Those within a line are not asked: there are thousands in a listing."""

_LISTS = ("ul", "ol", "div", "table", "section")


def main_text(tree: Any) -> str:
    """The text of a page (a resiliparse HTMLTree, of which only that is left) without its menus, comments and footers; empty where there is none."""
    from resiliparse.extract.html2text import extract_plain_text

    if tree.body is None:
        return ""
    _leave_main_part(tree.body)
    return str(extract_plain_text(tree, main_content=False, alt_texts=False, form_fields=False))


def _leave_main_part(body: Any) -> None:
    """Leave nothing in `body` but the page's main part."""
    for element in _all(body, _NEVER):
        element.remove()
    whole = len(body.text or "")
    for element in _all(body, _HIDDEN):
        if len(element.text or "") < MAX_ELSEWHERE_SHARE * whole:
            element.remove()
    running = _Running(body)
    for element in _all(body, _PARTS):
        if running.share(element) < _largest_aside(element) and body.contains(element):
            running.forget(element)
            element.remove()
    for teasers in _rows_of_teasers(body):
        if sum(running.share(teaser) for teaser in teasers) < MAX_ASIDE_SHARE:
            for teaser in teasers:
                running.forget(teaser)
                teaser.remove()
    main = running.main_part()
    if main != body:
        body.replace_children(main)
    _drop_link_lists(main)


def _largest_aside(element: Any) -> float:
    """Below which share of the page's running text an element is an aside, by its tag and its names; 0 where nothing says so."""
    tag = element.tag
    if tag in ("article", "main"):  # whose classes tell what the text is about
        return 0.0
    if tag == "form" or (tag in ("header", "footer", "aside") and element.closest(_MAIN) is None):
        return MAX_ASIDE_SHARE
    if limit := _limit_by_name(element.class_name or ""):
        return limit
    if tag == "footer":
        return MAX_ASIDE_SHARE
    limit = _limit_by_name(element.id or "")
    return 0.0 if limit and _is_anchor(element, element.id) else limit


@lru_cache(maxsize=4096)
def _limit_by_name(names: str) -> float:
    words = _CAMEL.sub("-", names)
    return MAX_ELSEWHERE_SHARE if _ELSEWHERE.search(words) else MAX_ASIDE_SHARE if _ASIDE.search(words) else 0.0


def _is_anchor(element: Any, name: str) -> bool:
    """Whether an id only repeats the words of its part's heading, for links to it."""
    headings = "h1, h2, h3, h4, h5, h6"
    heading = element if element.matches(headings) else element.query_selector(headings)
    return heading is not None and all(
        word in (heading.text or "").lower() for word in re.split(r"[\s_-]+", name.lower())
    )


def _rows_of_teasers(body: Any) -> list[list[Any]]:
    """Parts side by side of which each has a heading that is wholly a link: to other pages, for this one's need none."""
    rows: dict[Any, list[Any]] = {}
    for link in _all(body, "h2 a, h3 a, h4 a, h5 a, h6 a"):
        heading = link.closest("h2, h3, h4, h5, h6")
        part = heading.parent
        if part != body and (heading.text or "").strip() == (link.text or "").strip():
            row = rows.setdefault(part.parent, [])
            if part not in row:
                row.append(part)
    return [row for row in rows.values() if len(row) >= MIN_TEASERS]


class _Sums:
    """A number for each element below a root: the sum of what was added to it and to all that is in it.

    Elements are told apart once and counted by their places in lists from then on: to climb by asking each for its parent, and to look each up,
    took a fourth of the whole time of a page.
    """

    def __init__(self, root: Any) -> None:
        self._places: dict[Any, int] = {root: 0}
        self._above, self._sizes = [-1], [0]

    def add(self, element: Any, size: int) -> None:
        if not size:
            return
        place = self._places.get(element)
        if place is None:
            place = self._put_in(element)
        while place >= 0:
            self._sizes[place] += size
            place = self._above[place]

    def of(self, element: Any) -> int:
        place = self._places.get(element)
        return 0 if place is None else self._sizes[place]

    def items(self) -> Iterator[tuple[Any, int]]:
        """Each element below the root that something was added to or into, and its sum: the inner ones before those that they are in."""
        elements = iter(self._places.items())
        next(elements)  # the root
        return ((element, self._sizes[place]) for element, place in elements)

    def _put_in(self, element: Any) -> int:
        """The place of an element that had none; those that it is in get theirs behind it."""
        place = len(self._above)
        while True:
            self._places[element] = len(self._above)
            self._sizes.append(0)
            element = element.parent
            above = -1 if element is None else self._places.get(element)
            if above is not None:
                self._above.append(above)
                return place
            self._above.append(len(self._above) + 1)


class _Running:
    """How much running text each element of a page has: characters in paragraphs, those of links left out."""

    def __init__(self, body: Any) -> None:
        self._body = body
        for selector in (_RUNNING, _RUNNING_IN_LISTS):
            self._sums = _Sums(body)
            for element in _all(body, selector):
                self._sums.add(element, len(element.text or ""))
            for link in _all(body, ", ".join(f"{part} a" for part in selector.split(", "))):
                self._sums.add(link, -len(link.text or ""))
            if self._size(body) >= MIN_RUNNING_SHARE * len(body.text or ""):
                break
        else:
            self._sums = _Sums(body)  # what so little of a page is in tells nothing of where its text is

    def share(self, element: Any) -> float:
        """Of the running text of the whole page."""
        whole = self._size(self._body)
        return self._size(element) / whole if whole else 0.0

    def forget(self, element: Any) -> None:
        """The element goes, with all that is in it."""
        self._sums.add(element, -self._size(element))

    def main_part(self) -> Any:
        part = self._body
        while True:
            best = max(part.children.values(), key=self._size, default=None)
            if best is None or best.tag in ("p", "pre") or self._size(best) < max(1, MIN_MAIN_SHARE * self._size(part)):
                return part
            part = best

    def _size(self, element: Any) -> int:
        return self._sums.of(element)


def _drop_link_lists(main: Any) -> None:
    whole = len(main.text or "")
    linked = _Sums(main)
    for link in _all(main, "a"):
        linked.add(link, len(link.text or ""))
    for element, size in linked.items():
        if element.tag in _LISTS:
            text = len(element.text or "")
            if size > MAX_LINK_SHARE * text and text < MAX_ASIDE_SHARE * whole:
                element.remove()


def _all(element: Any, selector: str) -> list[Any]:
    """The elements below that a CSS selector names. (A list of resiliparse's own is searched anew for each item.)"""
    return element.query_selector_all(selector).values()
