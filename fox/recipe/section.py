"""A table of a recipe, and the kinds of values that many of them share."""

from __future__ import annotations

import math
import typing
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LARGEST = 2**63 - 1
"""TOML's whole numbers have 64 bits."""


def whole(value: Any) -> Any:
    """Let `2e6` stand where a whole number is meant: TOML reads it as a float."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


Whole = Annotated[int, BeforeValidator(whole), Field(gt=0, le=LARGEST)]
WholeOrZero = Annotated[int, BeforeValidator(whole), Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Hole(Exception):  # noqa: N818 (it never reaches a reader)
    """A value was asked for that is missing or faulty in the recipe. Only half-read recipes have holes."""


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise (Hole if name in type(self).model_fields else AttributeError)(name)


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def plain(annotation: Any) -> Any:
    """A type without Annotated, and without the `| None` of an optional key."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if type(None) in typing.get_args(annotation) and len(options) == 1:
        return plain(options[0])
    return annotation
