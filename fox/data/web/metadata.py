"""What a web page says of itself in its head: title, date, language, licence. Nothing is guessed from its text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MAX_TITLE = 500
"""Characters: no headline is longer."""

_DATES = (  # the day of publication first; Open Graph, Dublin Core, schema.org, HTML
    ("meta[property='article:published_time']", "content"),
    ("meta[itemprop=datePublished]", "content"),
    ("[itemprop=datePublished]", "datetime"),
    ("meta[name=date]", "content"),
    ("meta[name='DC.date.issued']", "content"),
    ("meta[name='dc.date']", "content"),
    ("time[pubdate]", "datetime"),
    ("article time[datetime]", "datetime"),
    ("time[datetime]", "datetime"),
    ("meta[property='article:modified_time']", "content"),
    ("meta[property='og:updated_time']", "content"),
)

_PUBLISHED = re.compile(r'"datePublished"\s{0,20}:\s{0,20}"([^"]{8,40})"')
"""In a script of JSON-LD (schema.org)."""

_CREATIVE_COMMONS = re.compile(
    r"(?:https?:)?//(?:www\.)?creativecommons\.org/(?:licenses|publicdomain)/([a-z-]{2,20})/?(\d\.\d)?", re.IGNORECASE
)

_DAY = re.compile(r"\s*((?:19|20)\d\d)-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01])(?!\d)")


def title_of(tree: Any) -> str:
    """The page's title: without the site's name where the page tells it so."""
    for value in _values(tree, (("meta[property='og:title']", "content"), ("meta[name='DC.title']", "content"))):
        if title := " ".join(value.split()):
            return title[:MAX_TITLE]
    return " ".join((tree.title or "").split())[:MAX_TITLE]


def date_of(tree: Any) -> str:
    """The day of publication, else of the last change, as YYYY-MM-DD; empty where the page tells none."""
    for value in (*_published(tree), *_values(tree, _DATES)):
        if day := _DAY.match(value):
            return "-".join(day.groups())
    return ""


def language_of(tree: Any) -> str:
    """The language tag of the whole page, such as `en-gb`; empty where there is none."""
    root = tree.document.document_element
    tag = (root.get_attribute("lang") or "").strip().lower() if root is not None else ""
    return tag if re.fullmatch(r"[a-z]{2,3}([_-][a-z0-9]{1,8}){0,3}", tag) else ""


def license_of(tree: Any) -> str:
    """The terms that a page links as its own (HTML, 4.6.7.8: rel="license"), such as `CC BY-SA 4.0`; empty where it links none, or several."""
    links = tree.document.query_selector_all("link[rel~=license][href], a[rel~=license][href]").values()
    found = {_terms((link.get_attribute("href") or "").strip()) for link in links}
    return found.pop() if len(found) == 1 else ""


def _terms(link: str) -> str:
    if not (common := _CREATIVE_COMMONS.match(link)):
        return link
    kind, version = common[1].lower(), common[2] or ""
    free = {"zero": "CC0", "mark": "public domain", "publicdomain": "public domain"}
    return f"{free.get(kind) or f'CC {kind.upper()}'} {version}".strip()


def _published(tree: Any) -> Iterator[str]:
    for script in tree.document.query_selector_all("script[type='application/ld+json']").values():
        if found := _PUBLISHED.search(script.text or ""):
            yield found[1]


def _values(tree: Any, places: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for selector, attribute in places:
        element = tree.document.query_selector(selector)
        if element is not None and (value := element.get_attribute(attribute)):
            yield value
