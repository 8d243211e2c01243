"""Pages of an older version, made into pages of today's: nothing is lost, and its writer is told what it is called now.

A recipe says its version at the top; a page without one is of version 1. A change of the language that would make old pages wrong
is a new version, with a function here that brings a page of the one before to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fox.errors import Problem
from fox.recipe.keys import KeyPath, dotted
from fox.recipe.schema import VERSION

Tell = Callable[[str], None]


class Page:
    """A page on its way to today's version: its values, and where each was written (`file:line`)."""

    def __init__(self, values: dict[str, Any], origins: dict[KeyPath, str]) -> None:
        self.values, self.origins = values, origins
        self.moved: dict[KeyPath, KeyPath] = {}
        self.problems: list[Problem] = []

    def move(self, old: KeyPath, new: KeyPath) -> None:
        """Call `old` `new`, in the same table. What was wrong with it is told with the line where it stands."""
        assert old[:-1] == new[:-1], "who moves a key to another table makes that table first"
        table: Any = self.values
        for part in old[:-1]:
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict) or old[-1] not in table:
            return
        if new[-1] in table:
            reason = f"is {dotted(new)} today, which is given, too"
            self.problems.append(
                Problem(dotted(old), reason, "Leave it out.", table[old[-1]], self.origins.get(old, ""))
            )
            del table[old[-1]]
            return
        table[new[-1]] = table.pop(old[-1])
        self.moved[old] = new
        if old in self.origins:
            self.origins[new] = self.origins.pop(old)


def _replies_say_so(page: Page) -> None:
    """1 -> 2: how sample replies are drawn is named as how many and how long they are."""
    for name in ("temperature", "top_p"):
        page.move(("eval", name), ("eval", f"reply_{name}"))


_TO_THE_NEXT: dict[int, Callable[[Page], None]] = {1: _replies_say_so}
assert sorted(_TO_THE_NEXT) == list(range(1, VERSION)), "each version leads to the next"


def version_of(page: Mapping[str, Any], place: str) -> tuple[int, list[Problem]]:
    """The version that a page says it has, and what is wrong with that."""
    version = page.get("version", 1)
    if type(version) is not int or version < 1:
        reason = "is no version: a whole number from 1 on"
        return VERSION, [Problem("version", reason, f"Write version = {VERSION}, which is today's.", version, place)]
    if version > VERSION:
        reason = f"is of a later Fox: this one reads recipes up to version {VERSION}"
        return VERSION, [Problem("version", reason, "Install a newer foxlm, or write the page anew.", version, place)]
    return version, []


def migrate(page: dict[str, Any], origins: dict[KeyPath, str], version: int, tell: Tell) -> list[Problem]:
    """Bring `page`, and where its keys were written, from `version` to today's, in place; `tell` is told of each key that moved."""
    moving = Page(page, origins)
    for number in range(version, VERSION):
        _TO_THE_NEXT[number](moving)
    for old, new in moving.moved.items():
        place = f"{origins[new]}  " if new in origins else ""
        tell(f"{place}{dotted(old)}: is {dotted(new)} since version {VERSION} of recipes, and was taken for it.")
    return moving.problems


def migrate_value(key: KeyPath, value: Any, version: int, place: str, tell: Tell) -> KeyPath:
    """What a key of a page of `version` is called today; a table is brought to today's version in place."""
    page: Any = value
    for part in reversed(key):
        page = {part: page}
    migrate(page, {key: place} | _below(key, value, place), version, tell)
    today: KeyPath = ()
    for _ in key:
        ((part, page),) = page.items()
        today = (*today, part)
    return today


def migrated(page: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A copy of a kept page, or of some of its tables, of `version`, as it would be today."""
    tables = {key: dict(value) if isinstance(value, dict) else value for key, value in page.items()}
    migrate(tables, {}, version, lambda _: None)
    return tables


def new_name(key: KeyPath) -> KeyPath | None:
    """What a key of an older version is called today; None where it never was one."""
    if not key or not all(isinstance(part, str) for part in key):
        return None
    today = migrate_value(key, 0, 1, "", lambda _: None)
    return None if today == key else today


def _below(key: KeyPath, value: Any, place: str) -> dict[KeyPath, str]:
    if not isinstance(value, dict):
        return {}
    found: dict[KeyPath, str] = {}
    for part, item in value.items():
        found |= {(*key, part): place} | _below((*key, part), item, place)
    return found
