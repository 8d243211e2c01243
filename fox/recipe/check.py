"""Hold a page against the schema and tell all that is wrong: each value alone, then the values beside each other."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Callable
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fox.errors import Problem
from fox.recipe.contradictions import contradictions
from fox.recipe.keys import KeyPath, dotted, key_path
from fox.recipe.migrate import new_name
from fox.recipe.schema import VERSION, Recipe, documentation, type_at
from fox.recipe.section import Section, is_section, plain


def check(page: dict[str, Any], place_of: Callable[[KeyPath], str]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe on `page`, or what is wrong with it; `place_of` says where a key was written."""
    faults: list[Problem] = []
    try:
        recipe = Recipe.model_validate(page)
    except ValidationError as error:
        faults = [_problem(detail, page, place_of) for detail in error.errors()]
        recipe = typing.cast(Recipe, _with_holes(Recipe, page))
    faults += [
        Problem(found.key, found.problem, found.mend, found.value, place_of(key_path(found.key)))
        for found in contradictions(recipe)
    ]
    return (None if faults else recipe), faults


def _problem(detail: Any, page: dict[str, Any], place_of: Callable[[KeyPath], str]) -> Problem:
    """What pydantic found, in our words."""
    key, value = detail["loc"], detail["input"]
    if detail["type"] == "missing":
        problem, mend, value = "is missing", f"Add it. {_about(key)}", None
    elif detail["type"] == "extra_forbidden":
        known = sorted(type_at(key[:-1]).model_fields)
        today = new_name(key)
        guess = f"It is {dotted(today)} since version {VERSION} of recipes. " if today else _guess(key[-1], known)
        problem, mend, value = "unknown key", f"{guess}(known: {', '.join(known)})", None
    elif detail["type"] == "literal_error":
        known = list(typing.get_args(type_at(key)))
        problem, mend = f"must be {' or '.join(map(repr, known))}", f"{_guess(value, known)}{_about(key)}"
    else:
        problem, mend = _reason(detail["type"], detail.get("ctx", {}), detail["msg"]), _about(key)
    return Problem(dotted(key), problem, mend.strip(), value, place_of(key))


def _reason(kind: str, context: dict[str, Any], message: str) -> str:
    match kind:
        case "int_type":
            return "must be a whole number"
        case "float_type":
            return "must be a number"
        case "finite_number":
            return "must be a finite number"
        case "bool_type":
            return "must be true or false"
        case "string_type":
            return "must be text in quotes"
        case "list_type":
            return "must be a list in square brackets"
        case "dict_type" | "model_type":
            return "must be a table with keys of its own"
        case "greater_than":
            return f"must be above {_number(context['gt'])}"
        case "greater_than_equal":
            return f"must be at least {_number(context['ge'])}"
        case "less_than":
            return f"must be below {_number(context['lt'])}"
        case "less_than_equal":
            return f"must be at most {_number(context['le'])}"
        case "too_short":
            return "must not be empty"
        case "value_error":
            return str(context["error"])
    return message[:1].lower() + message[1:]


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _guess(word: object, known: list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1)
    return f"Did you mean {close[0]}? " if close else ""


def _about(key: KeyPath) -> str:
    """What the key is for; of a table, which keys it can't do without; of an item, what its list or table is for."""
    if len(key) > 1 and not is_section(type_at(key)) and typing.get_origin(type_at(key[:-1])) in (dict, list):
        return _about(key[:-1])
    kind, said = type_at(key), documentation(key)
    if typing.get_origin(kind) is dict and is_section(type_at((*key, "NAME"))):
        return _about((*key, "NAME"))
    if is_section(kind):
        needed = [name for name, field in kind.model_fields.items() if field.is_required()]
        said = said or kind.__doc__ or ""
        return f"[{dotted(key)}] needs {', '.join(needed)}." if needed else f"About {dotted(key)}: {said}"
    return f"About {key[-1]}: {said}" if said else ""


def _with_holes(section: type[Section], given: Any) -> Section:
    """`given` as far as it is sound: what is missing or faulty raises Hole when a contradiction is looked for in it."""
    values: dict[str, Any] = {}
    holes = set()
    for name, field in section.model_fields.items():
        kind = plain(field.annotation)
        inner = typing.get_args(kind)[-1] if typing.get_origin(kind) is dict else None
        value = given.get(name) if isinstance(given, dict) else None
        if value is None:
            if is_section(kind) and field.is_required():
                values[name] = _with_holes(kind, None)
            elif not isinstance(given, dict):
                holes.add(name)
        elif is_section(kind):
            values[name] = _with_holes(kind, value)
        elif is_section(inner) and isinstance(value, dict) and value:
            values[name] = {key: _with_holes(typing.cast(type[Section], inner), item) for key, item in value.items()}
        else:
            try:
                adapter = TypeAdapter(field.rebuild_annotation(), config=section.model_config)
                values[name] = adapter.validate_python(value)
            except ValidationError:
                holes.add(name)
    made = section.model_construct(**values)
    for name in holes:
        made.__dict__.pop(name, None)
    return made
