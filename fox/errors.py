"""What goes wrong, told so that the reader can mend it.

`UserError` is a mistake of the user's: it names the key, its value, the reason and the mend, and ends the program with
exit code 2. `Failure` is the world's (a full disk, a broken file): exit code 1. `Stopped` is the scheduler's wish: exit code 75.
Anything else that escapes is our bug.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing to mend. `place` is `file:line` where a file is at fault; `value` is shown only where there is one."""

    key: str
    problem: str
    mend: str
    value: object = None
    place: str = ""

    def __str__(self) -> str:
        place = f"{self.place}  " if self.place else ""
        value = "" if self.value is None else f" = {shorten(self.value)}"
        mend = f" {self.mend}" if self.mend else ""
        return f"{place}{self.key}{value}: {self.problem}.{mend}"


class FoxError(Exception):
    """The base of every error that Fox raises on purpose."""

    exit_code = 1


class UserError(FoxError):
    """A mistake that the user can mend, alone."""

    exit_code = 2

    def __init__(self, key: str, value: object = None, *, problem: str, mend: str = "", place: str = "") -> None:
        self.problems: list[Problem] = [Problem(key, problem, mend, value, place)]
        super().__init__(str(self.problems[0]))

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send their errors to the one that tells them
        return _again, (type(self), self.problems, self.args)


class RecipeError(UserError):
    """Everything that is wrong with a recipe, all at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        Exception.__init__(self, "\n".join(str(problem) for problem in problems))


class Failure(FoxError):  # noqa: N818 (it is nobody's error)
    """Something that failed through no mistake in the command: a full disk, a damaged file, a busy directory."""


class Stopped(FoxError):  # noqa: N818 (it is nobody's error)
    """The run was asked to end (SIGTERM) before it was done. Exit code 75 (EX_TEMPFAIL): a scheduler should start it again."""

    exit_code = 75


def shorten(value: object, limit: int = 160) -> str:
    """`value` as a reader of recipes should see it: on one line, cut in the middle where it is long."""
    text = _written(value)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 4 :]}"


def _written(value: object) -> str:
    """Much as TOML has it: true and not True, { text = 1 } and not {'text': 1}."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_written(item)}' for key, item in value.items())} }}" if value else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to print the longest of them
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def _again(kind: type[UserError], problems: list[Problem], args: tuple[Any, ...]) -> UserError:
    error = kind.__new__(kind, *args)
    error.problems = problems
    return error
