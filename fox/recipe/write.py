"""A resolved recipe as a page again: what a run keeps as JSON, written so that `fox run` reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fox.recipe.keys import KeyPath, dotted
from fox.recipe.schema import type_at
from fox.recipe.section import is_section

_NOT_IN_TOML = re.compile(
    "[\x7f\ud800-\udfff]"
)  # a sign that TOML wants escaped and JSON does not, and half characters


def toml_page(recipe: Mapping[str, Any]) -> str:
    """Every value of a recipe as TOML; a value that is None is left out, which is how TOML says it."""
    return "\n".join(_table(recipe, ())).strip("\n") + "\n"


def toml_value(value: Any) -> str:
    """One value, on one line."""
    if isinstance(value, Mapping):
        items = [f"{dotted((key,))} = {toml_value(item)}" for key, item in value.items() if item is not None]
        return "{ " + ", ".join(items) + " }" if items else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return _NOT_IN_TOML.sub(_escape, json.dumps(value, ensure_ascii=False))
    return json.dumps(value)


def _table(table: Mapping[str, Any], name: KeyPath) -> Iterator[str]:
    """A table's own values, then the tables in it that the schema knows by name; others, such as a mix, stay on one line."""
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping) and _has_heading((*name, key))}
    own = [
        f"{dotted((key,))} = {toml_value(item)}" for key, item in table.items() if key not in inner and item is not None
    ]
    if own and name:
        yield f"[{dotted(name)}]"
    yield from own
    if own:
        yield ""
    for key, value in inner.items():
        yield from _table(value, (*name, key))


def _has_heading(key: KeyPath) -> bool:
    return is_section(type_at(key)) or is_section(type_at((*key, "NAME")))


def _escape(found: re.Match[str]) -> str:
    sign = found.group()
    return "\\u007f" if sign == "\x7f" else "?"
