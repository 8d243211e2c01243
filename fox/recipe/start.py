"""A recipe that starts from an existing model: shape and vocabulary are that model's, and the page need not say them again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fox.errors import Problem, UserError
from fox.recipe.keys import KeyPath, dotted

START = ("model", "start_from")


@dataclass(frozen=True)
class Shape:
    """What an existing model settles: values of [model], and the entries of its tokenizer."""

    model: Mapping[str, Any]
    vocab_size: int


ShapeOf = Callable[[str], Shape]
"""Looks into the model of a name. Raises UserError where it means none that Fox loads."""


def take_up_start(
    page: dict[str, Any],
    origins: dict[KeyPath, str],
    place_of: Callable[[KeyPath], str],
    shape_of: ShapeOf | None,
) -> list[Problem]:
    """Lay the shape of the model that `page` starts from into it; what is wrong with that model, or contradicts it."""
    name = _name(page)
    if name is None:
        return []
    assert shape_of is not None, "who reads such a recipe can look into models"
    tokenizer = page.setdefault("tokenizer", {})
    try:
        shape = shape_of(name)
    except UserError as error:
        return [Problem(dotted(START), p.problem, p.mend, name, place_of(START)) for p in error.problems]
    problems = []
    if isinstance(tokenizer, dict) and tokenizer.get("path") is not None:
        reason = f"contradicts {dotted(START)}: a model and its tokenizer belong together"
        key = ("tokenizer", "path")
        problems.append(Problem(dotted(key), reason, "Leave it out.", tokenizer["path"], place_of(key)))
    for section, values in (("model", shape.model), ("tokenizer", {"vocab_size": shape.vocab_size})):
        table = page[section]
        if not isinstance(table, dict):
            continue  # which the schema will say
        for part, value in values.items():
            key = (section, part)
            if table.get(part) is None:
                table[part] = value
                origins[key] = dotted(START)
            elif table[part] != value:
                reason = f"is {value} in the model at {dotted(START)}"
                mend = "Leave it out: it comes with the model."
                problems.append(Problem(dotted(key), reason, mend, table[part], place_of(key)))
    return problems


def is_left_to_the_model(problem: Problem) -> bool:
    """Whether it only says that a value is missing which the model would have brought, could it be read."""
    return problem.problem == "is missing" and (
        problem.key.startswith("model.") or problem.key == "tokenizer.vocab_size"
    )


def _name(page: dict[str, Any]) -> str | None:
    model = page.get(START[0])
    name = model.get(START[1]) if isinstance(model, dict) else None
    return name if isinstance(name, str) else None
