"""Read a recipe: the page, then the command line's `-o`, checked as a whole and told with file and line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fox.errors import Problem, RecipeError, UserError, shorten
from fox.recipe.auto_rows import AUTO, take_up_rows
from fox.recipe.check import check
from fox.recipe.keys import KeyPath, dotted, key_path
from fox.recipe.locate import locate
from fox.recipe.migrate import Tell, migrate, migrate_value, version_of
from fox.recipe.schema import VERSION, Recipe, type_at
from fox.recipe.start import ShapeOf, is_left_to_the_model, take_up_start

__all__ = ["DEFAULT", "OVERRIDE", "LoadedRecipe", "dotted", "load_recipe", "parse_override"]

OVERRIDE = "-o"
DEFAULT = "default"


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, and for each value that was given where it came from: `file:line` or `-o`."""

    recipe: Recipe
    origins: dict[KeyPath, str]
    auto_rows: tuple[str, ...] = ()
    """Stages (`stage.NAME`, `tune`) whose rows are still to be fitted; the recipe has 1 there."""
    fitted_rows: Mapping[str, int] = field(default_factory=dict)
    """Stages whose rows were fitted (fox/runs/rows.py), which the recipe has."""

    def rows(self) -> list[tuple[str, object, str]]:
        """Key, value and origin (`file:line`, `-o` or `default`) of every value, in the order of the reference page."""
        told = []
        for key, value in _leaves(self.recipe.model_dump(), ()):
            origin, stage = self.origins.get(key, DEFAULT), dotted(key[:-1])
            if key[-1] == "rows" and stage in self.auto_rows:
                value = AUTO
            if key[-1] == "rows" and stage in self.fitted_rows:
                origin = f"{origin} ({AUTO})"
            told.append((dotted(key), value, origin))
        return told

    def with_rows(self, rows: Mapping[str, int]) -> LoadedRecipe:
        """The same with these rows in the stages that were left to the machine."""
        stages = {
            name: stage.model_copy(update={"rows": rows.get(dotted(("stage", name)), stage.rows)})
            for name, stage in self.recipe.stage.items()
        }
        tune = self.recipe.tune
        if tune and "tune" in rows:
            tune = tune.model_copy(update={"rows": rows["tune"]})
        return LoadedRecipe(
            self.recipe.model_copy(update={"stage": stages, "tune": tune}), self.origins, (), dict(rows)
        )


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), shape_of: ShapeOf | None = None, tell: Tell = lambda _: None
) -> LoadedRecipe:
    """The recipe at `path` with `overrides` (each `key=value`) laid over it.

    `shape_of` looks into the model that one starts from (`model.start_from`), and gives what the page leaves to it. A page of an
    older version is read as what it would be today, and `tell` is told of each key that has another name by now.
    Raises RecipeError with every problem at once, UserError where the file can't be read at all.
    """
    page, lines = _read(Path(path))
    origins: dict[KeyPath, str] = {key: f"{path}:{line}" for key, line in lines.items()}
    version, problems = version_of(page, origins.get(("version",), str(path)))
    problems += migrate(page, origins, version, tell)
    page["version"] = VERSION
    for override in overrides:
        try:
            key, value = parse_override(override)
            if key == ("version",):
                reason, mend = "is that of the page, and can't be changed beside it", "Leave it out."
                raise UserError("version", value, problem=reason, mend=mend, place=OVERRIDE)
            key = migrate_value(key, value, version, OVERRIDE, tell)
            _lay_over(page, origins, key, value)
        except UserError as error:
            problems += error.problems

    def place_of(key: KeyPath) -> str:
        return _place(origins, key) or str(path)

    wrong_start = take_up_start(page, origins, place_of, shape_of)
    auto_rows = tuple(map(dotted, take_up_rows(page)))
    recipe, found = check(page, place_of)
    if wrong_start:
        found = wrong_start + [problem for problem in found if not is_left_to_the_model(problem)]
    problems += sorted(found, key=_line_of)
    if problems or recipe is None:
        raise RecipeError(problems)
    return LoadedRecipe(recipe, origins, auto_rows)


def parse_override(override: str) -> tuple[KeyPath, Any]:
    """`stage.foundation.tokens=2e6` as a key path and a value: TOML, or bare text where that is a string."""
    name, equals, text = override.partition("=")
    mend = "Write -o key=value, for instance -o optimizer.peak_learning_rate=1e-3."
    if not equals:
        raise UserError(OVERRIDE, override, problem="has no '='", mend=mend)
    if any(
        "\ud800" <= sign <= "\udfff" for sign in override
    ):  # how Python spells bytes of an argument that are no UTF-8
        raise UserError(
            OVERRIDE, override, problem="is not UTF-8 text", mend="Recipes are, and so must be their paths."
        )
    try:
        key = key_path(name)
    except ValueError:
        raise UserError(OVERRIDE, override, problem=f"{name!r} is no key", mend=mend) from None
    if type_at(key) is str and not text.startswith(('"', "'")):
        return key, text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return key, text
    return key, parsed["value"] if len(
        parsed
    ) == 1 else text  # more than one: text had a line of its own that we'd drop


def _read(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The page at `path`, and the line of each of its keys."""

    def wrong(problem: str, mend: str, place: str = "") -> UserError:
        return UserError("recipe", None if place else str(path), problem=problem, mend=mend, place=place)

    try:
        text = path.read_bytes().decode("utf-8-sig")  # with the mark that Windows editors put first, or without
    except FileNotFoundError:
        raise wrong("there is no such file", _recipes_here(path)) from None
    except IsADirectoryError:
        raise wrong("is a folder", _recipes_here(path / "recipe.toml")) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise wrong("is not UTF-8 text", "Save the file as UTF-8.", f"{path}:{line}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise wrong(f"can't be read ({reason})", "Name a TOML file that you can read.") from None
    try:
        return tomllib.loads(text), locate(text)
    except tomllib.TOMLDecodeError as error:
        raise wrong(*_not_toml(str(error), text, path)) from None
    except ValueError:
        raise wrong("has a number of thousands of digits", "Mend that number.") from None
    except RecursionError:
        raise wrong("has brackets in brackets in brackets, hundreds deep", "Write it flat.") from None


def _not_toml(reason: str, text: str, path: Path) -> tuple[str, str, str]:
    """Problem, mend and place of what `tomllib` says: `Invalid value (at line 3, column 8)`."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", reason, re.DOTALL)
    lines = text.split("\n")
    what, number, column = found.groups() if found else (reason, None, None)
    line = int(number) if number else len(lines)
    at = f"at column {column} of {shorten(lines[line - 1].strip())}" if column else "at the end of the file"
    return f"is not TOML: {what[:1].lower()}{what[1:]}, {at}", "Mend that line.", f"{path}:{line}"


def _lay_over(page: dict[str, Any], origins: dict[KeyPath, str], key: KeyPath, value: Any) -> None:
    """Put one override into the page, and note that it and the tables made for it come from the command line."""
    at: Any = page
    for number, part in enumerate(key[:-1], start=1):
        if part not in at:
            at[part] = {}
            origins[key[:number]] = OVERRIDE
        at = at[part]
        if not isinstance(at, dict):
            raise UserError(
                dotted(key),
                value,
                problem=f"{dotted(key[:number])} is a value, not a table with keys of its own",
                mend=f"Write -o {dotted(key[:number])}=VALUE.",
                place=OVERRIDE,
            )
    at[key[-1]] = value
    for known in [known for known in origins if known[: len(key)] == key]:
        del origins[known]
    origins[key] = OVERRIDE
    if isinstance(value, dict):
        origins.update({(*key, *inner): OVERRIDE for inner in _tables_and_leaves(value)})


def _tables_and_leaves(value: dict[str, Any]) -> Iterator[KeyPath]:
    for part, item in value.items():
        yield (part,)
        if isinstance(item, dict):
            yield from ((part, *inner) for inner in _tables_and_leaves(item))


def _place(origins: dict[KeyPath, str], key: KeyPath) -> str:
    """Where `key` was written, or else the table that it belongs in."""
    return next((origins[key[:length]] for length in range(len(key), 0, -1) if key[:length] in origins), "")


def _line_of(problem: Problem) -> int:
    line = problem.place.rpartition(":")[2]
    return int(line) if line.isdecimal() else 0


def _leaves(value: Any, key: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    if isinstance(value, dict) and value:
        for part, item in value.items():
            yield from _leaves(item, (*key, part))
    else:
        yield key, value


def _recipes_here(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("recipes")
    here = sorted(str(file) for file in folder.glob("*.toml")) if folder.is_dir() else []
    more = f" and {len(here) - 8} more" if len(here) > 8 else ""
    return f"There is {', '.join(here[:8])}{more}." if here else "Name a TOML file."
