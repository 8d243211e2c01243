"""The reference page of recipes, made from the schema: `python -m fox.recipe.reference > docs/recipe-reference.md`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo

from fox.recipe.schema import Recipe
from fox.recipe.section import LARGEST, Section, is_section, plain

COMMAND = "python -m fox.recipe.reference > docs/recipe-reference.md"

PREFACE = f"""\
<!-- Made from fox/recipe/schema.py. Don't edit it: run  {COMMAND} -->
# Recipe reference

A recipe is one TOML file with the tables below. A key that has no default must be given, and a key that is not here is
an error. A whole number may be written as `2e6`. `-o KEY=VALUE` changes a value for one run
(`-o stage.foundation.tokens=2e6`), and `fox show RECIPE` prints each value and where it came from.
"""


def reference_markdown() -> str:
    """Every table and key of a recipe, with type, bounds, default and meaning, as Markdown."""
    return "\n".join([PREFACE, *_section("", Recipe)]).rstrip("\n") + "\n"


def _section(name: str, section: type[Section], note: str = "") -> Iterator[str]:
    """A heading and a table of the section's own keys, then the sections in it."""
    inner = {key: found for key, field in section.model_fields.items() if (found := _tables_in(name, key, field))}
    if name:
        yield f"## `[{name}]`\n"
        yield f"{' '.join([section.__doc__ or '', note]).strip()}\n"
    else:
        yield "## The page itself\n"
    keys = [(key, field) for key, field in section.model_fields.items() if key not in inner]
    if keys:
        yield "| key | value | default | meaning |"
        yield "|---|---|---|---|"
        for key, field in keys:
            words = _in_words(field.annotation, field.metadata).replace("|", "\\|")
            meaning = (field.description or "").replace("|", "\\|").replace("\n", " ")
            yield f"| `{key}` | {words} | {_default(field)} | {meaning} |"
        yield ""
    for key, (inner_name, inner_section) in inner.items():
        field = section.model_fields[key]
        left_out = "" if field.is_required() else "It may be left out."
        yield from _section(inner_name, inner_section, f"{field.description or ''} {left_out}".strip())


def _tables_in(name: str, key: str, field: FieldInfo) -> tuple[str, type[Section]] | None:
    """The table that a key opens: `[model]`, or `[stage.NAME]` for as many as there are names."""
    kind = plain(field.annotation)
    here = f"{name}.{key}" if name else key
    if is_section(kind):
        return here, kind
    if typing.get_origin(kind) is dict and is_section(typing.get_args(kind)[-1]):
        return f"{here}.NAME", typing.get_args(kind)[-1]
    return None


def _in_words(annotation: Any, metadata: list[Any], many: bool = False) -> str:
    """A type as a reader says it: `whole number above 0`, `list of texts`."""
    while hasattr(annotation, "__metadata__"):
        metadata = [*annotation.__metadata__, *metadata]
        annotation = annotation.__origin__
    origin, inner = typing.get_origin(annotation), [a for a in typing.get_args(annotation) if a is not type(None)]
    s = "s" if many else ""
    if origin is typing.Literal:
        words = ", ".join(f'`"{choice}"`' for choice in inner)
    elif origin in (typing.Union, types.UnionType):
        return " or ".join(_in_words(one, metadata if len(inner) == 1 else [], many) for one in inner)
    elif origin is dict:
        words = f"table{s} of {_in_words(inner[-1], [], True)}"
    elif origin is list:
        words = f"list{s} of {_in_words(inner[0], [], True)}"
    else:
        words = {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation] + s
    return f"{words} {_bounds(metadata)}".strip()


def _bounds(metadata: list[Any]) -> str:
    """The bounds of a number in words; the schema's own upper end of all whole numbers is not worth a word."""
    found: dict[type, Any] = {}
    for item in metadata:
        for bound in item.metadata if isinstance(item, FieldInfo) else [item]:
            found[type(bound)] = bound
    words = []
    if annotated_types.Gt in found:
        words.append(f"above {found[annotated_types.Gt].gt}")
    if annotated_types.Ge in found:
        words.append(f"at least {found[annotated_types.Ge].ge}")
    if annotated_types.Lt in found:
        words.append(f"below {found[annotated_types.Lt].lt}")
    if annotated_types.Le in found and found[annotated_types.Le].le != LARGEST:
        words.append(f"at most {found[annotated_types.Le].le}")
    if annotated_types.MinLen in found:
        words.append("with at least one key")
    return " and ".join(words)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    return "none" if field.default is None else f"`{json.dumps(field.default, ensure_ascii=False)}`"


if __name__ == "__main__":
    print(reference_markdown(), end="")
