"""The sums of a page's elements are those that asking every element for its parents gives."""

from __future__ import annotations

import random
from typing import Any

import pytest
from resiliparse.parse.html import HTMLTree

from fox.data.web.main_text import _Sums


def page(draw: random.Random) -> Any:
    """A body with some hundred elements in each other."""
    html, open_tags = ["<body>"], 0
    for _ in range(300):
        if open_tags and draw.random() < 0.5:
            html.append("</div>")
            open_tags -= 1
        else:
            html.append("<div>")
            open_tags += 1
    return HTMLTree.parse("".join(html)).body


def plain_sums(root: Any, added: list[tuple[Any, int]]) -> dict[Any, int]:
    sums: dict[Any, int] = {}
    for element, size in added:
        while element is not None:
            sums[element] = sums.get(element, 0) + size
            element = None if element == root else element.parent
    return sums


@pytest.mark.parametrize("seed", range(5))
def test_they_are_those_of_the_plain_way(seed: int) -> None:
    draw = random.Random(seed)
    body = page(draw)
    elements = body.query_selector_all("div").values()
    added = [(element, draw.randint(-3, 9)) for element in draw.choices(elements, k=60)]
    added = [(element, size) for element, size in added if size]
    sums, expected = _Sums(body), plain_sums(body, added)
    for element, size in added:
        sums.add(element, size)
    assert {element: sums.of(element) for element in (body, *elements)} == {
        element: expected.get(element, 0) for element in (body, *elements)
    }
    assert list(sums.items()) == [(element, size) for element, size in expected.items() if element != body]


def test_what_goes_is_taken_from_all_that_it_was_in() -> None:
    body = HTMLTree.parse("<body><div id=a><p id=b>text</p></div><div id=c>text</div>").body
    part = {name: body.query_selector(f"#{name}") for name in "abc"}
    sums = _Sums(body)
    sums.add(part["b"], 4)
    sums.add(part["c"], 4)
    part["b"].remove()
    sums.add(part["b"], -4)
    assert (sums.of(part["a"]), sums.of(body)) == (0, 4)


def test_an_element_out_of_the_page_is_nobodys() -> None:
    body = HTMLTree.parse("<body><div id=a><p id=b>text</p></div>").body
    outer, inner = body.query_selector("#a"), body.query_selector("#b")
    outer.remove()
    sums = _Sums(body)
    sums.add(inner, 3)
    assert (sums.of(inner), sums.of(outer), sums.of(body)) == (3, 3, 0)
