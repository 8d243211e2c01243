"""A run's folder. Each step leaves a manifest when it is done: what it read (hashes), what it made, and in how long.

A step is done when its manifest names what it would read now, and what it made is still there, unchanged. If a recipe or a
source has changed since, that is said, and nothing is thrown away unasked.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import fox
from fox.artifacts import WORK, put_back_on, remove_at_once, sha256_of, stamp_of, write_json
from fox.errors import Failure, Problem, RecipeError, UserError
from fox.progress import Meter
from fox.recipe import LoadedRecipe, Recipe
from fox.recipe.migrate import migrated
from fox.recipe.schema import VERSION, without_descriptions
from fox.train.trackers import FOLDER as TRACKERS
from fox.train.trackers import NONE_WANTED, Wanted

STEPS: dict[str, tuple[str, ...]] = {
    "corpus": ("corpus",),
    "tokenizer": ("tokenizer",),
    "data": ("data",),
    "pretrain": ("model", "pretrain"),
    "tune": ("tuned", "tune"),
    "eval": ("eval",),
    "report": ("report",),
}
"""The steps in their order, and the folders that each fills, the one to name first. A corpus or a tuning is made where the recipe asks for it."""

_OWN_CARE = ("checkpoints", TRACKERS, WORK)
"""What is in a step's folders and none of what it made: checkpoints carry their own hashes and go as newer come; trackers are others'."""

_FIELDS: dict[str, Any] = {
    "inputs": dict,
    "outputs": dict,
    "stamps": dict,
    "facts": dict,
    "seconds": (int, float),
    "recipe_version": int,
}


@dataclass
class Run:
    """A recipe and the folder that it fills."""

    folder: Path
    loaded: LoadedRecipe
    watchers: Wanted = NONE_WANTED

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    def manifest(self, step: str) -> dict[str, Any] | None:
        """What a step said when it was done, or None where it is not done."""
        path = self._manifest_path(step)
        try:
            manifest = {"stamps": {}, "recipe_version": 1, **json.loads(path.read_text(encoding="utf-8"))}
            wrong = [key for key, kind in _FIELDS.items() if not isinstance(manifest.get(key), kind)]
            if wrong:
                raise ValueError(f"{wrong[0]} is not as Fox writes it")
            return manifest
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise Failure(f"{path}: can't be read ({error}). Remove it to do this step again.") from error

    def needs(self, step: str) -> dict[str, Any]:
        """The manifest of an earlier step. Raises UserError where that is not done, Failure where what it made has changed."""
        manifest = self.manifest(step)
        if manifest is None:
            raise UserError(
                "step",
                step,
                problem=f"is not done in {self.folder}",
                mend=f"Run `fox {step}` with the same recipe first, or `fox run` for all of it.",
            )
        self._check_outputs(step, manifest)
        return manifest

    def is_done(self, step: str, inputs: dict[str, Any]) -> bool:
        """Whether `step` was done with these inputs. Raises where it was done with others, or where what it made has changed."""
        if problems := self.changed(step, inputs, all_of_them=True):
            raise RecipeError(problems)
        manifest = self.manifest(step)
        if manifest is None:
            return False
        if step == "report":  # `fox report` draws it anew whenever it is asked to, and no step reads it
            return (self.folder / "report").is_dir()
        self._check_outputs(step, manifest)
        return True

    def changed(self, step: str, inputs: dict[str, Any], all_of_them: bool = False) -> list[Problem]:
        """A Problem for each key in which these inputs are others than those that `step` was done with. They may be some of them only.

        None where it is not done.
        """
        manifest = self.manifest(step)
        if manifest is None:
            return []
        then = without_rows(migrated(manifest["inputs"], manifest["recipe_version"]))
        old = flat(then if all_of_them else {key: then[key] for key in inputs if key in then})
        return _differences(old, flat(inputs), f"when `{step}` was done in {self.folder}", step)

    def check_begun(self, step: str, path: Path, inputs: dict[str, Any]) -> None:
        """Keep at `path` what a step that may be interrupted is begun with. Raises RecipeError where it was begun with something else."""
        try:
            then = flat(json.loads(path.read_bytes()))
        except FileNotFoundError:
            write_json(path, inputs)
            return
        except ValueError as error:
            raise Failure(f"{path}: can't be read ({error}). Begin this step again: --redo {step}.") from None
        if problems := _differences(then, flat(inputs), f"when `{step}` was begun in {self.folder}", step):
            raise RecipeError(problems)

    def check_contents(self, step: str, names: Iterable[str], shown: Meter) -> None:
        """Hash files that `step` made, whatever their sizes and times say. Raises Failure where one is not as it was made."""
        outputs = (self.manifest(step) or {"outputs": {}})["outputs"]
        for name in names:
            path = self.folder / name
            if sha256_of(path, partial(shown.advance, note=name)) != outputs.get(name):
                raise _no_longer(path, step)

    def finish(self, step: str, inputs: dict[str, Any], facts: dict[str, Any], started: float) -> dict[str, Any]:
        """Write the manifest of a step, as its last act.

        Its `seconds` are those of this process. A training may have had several: of it, they are those of its steps, in all.
        """
        files = self._made_by(step)
        began = datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds")
        manifest = {
            "step": step,
            "fox": fox.__version__,
            "recipe_version": VERSION,
            "started": began.replace("+00:00", "Z"),
            "seconds": facts.get("seconds_training", round(time.time() - started, 1)),
            "inputs": inputs,
            "stamps": {name: stamp_of(path) for name, path in files.items()},
            "outputs": {name: sha256_of(path) for name, path in files.items()},
            "facts": facts,
        }
        write_json(self._manifest_path(step), manifest)
        self.sweep(step)
        return manifest

    def sweep(self, step: str) -> None:
        """Remove what a step needed while it was not done."""
        remove_at_once([self.folder / name / WORK for name in STEPS[step]])

    def undo(self, first: str) -> list[str]:
        """Remove what `first` and all later steps made; their names."""
        undone = list(STEPS)[list(STEPS).index(first) :]
        folders = [self.folder / name for step in reversed(undone) for name in STEPS[step]]
        remove_at_once([*(self._manifest_path(step) for step in reversed(undone)), *folders])
        return undone

    @contextlib.contextmanager
    def recipe_kept(self) -> Iterator[None]:
        """Keep the resolved recipe with the run; or the one before it, where the block finds that this one can't be used."""
        path = self.folder / "recipe.json"
        with put_back_on(UserError, path):
            write_json(path, self._kept())
            yield

    def keep_descriptions(self) -> None:
        """Take licences and addresses that have changed since into the recipe that is kept: no step is done again for them.

        A kept recipe that differs in more than these stays as it is, for it is what the run was made with.
        """
        path = self.folder / "recipe.json"
        try:
            kept = json.loads(path.read_bytes())["recipe"]
            today = {**migrated(kept, kept.get("version", 1)), "version": VERSION}
            same_run = without_descriptions(today) == without_descriptions(self._kept()["recipe"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return  # none yet, or damaged: the next step that is done writes it
        if same_run and kept != self._kept()["recipe"]:
            write_json(path, self._kept())

    def _kept(self) -> dict[str, Any]:
        rows = [[key, value, origin] for key, value, origin in self.loaded.rows()]
        return json.loads(json.dumps({"recipe": self.recipe.model_dump(), "rows": rows}))

    def _made_by(self, step: str) -> dict[str, Path]:
        files = sorted(path for name in STEPS[step] for path in (self.folder / name).rglob("*") if path.is_file())
        named = {str(path.relative_to(self.folder)): path for path in files}
        return {name: path for name, path in named.items() if name.split("/")[1] not in _OWN_CARE}

    def _check_outputs(self, step: str, manifest: dict[str, Any]) -> None:
        """Raise Failure where a file is not as it was made. One that has its size and time still is not hashed again."""
        stamps = {}
        for name, digest in manifest["outputs"].items():
            path = self.folder / name
            if path.is_file():
                stamps[name] = stamp_of(path)
            if name not in stamps or (stamps[name] != manifest["stamps"].get(name) and sha256_of(path) != digest):
                raise _no_longer(path, step)
        if stamps != manifest["stamps"]:
            write_json(self._manifest_path(step), {**manifest, "stamps": stamps})

    def _manifest_path(self, step: str) -> Path:
        return self.folder / "manifests" / f"{step}.json"


def _differences(old: dict[str, Any], new: dict[str, Any], when: str, step: str) -> list[Problem]:
    return [
        Problem(
            key,
            f"{f'was {old[key]!r}' if key in old else 'was not there'} {when}",
            f"Go back to that, keep both with --out, or do `{step}` and what follows again: `fox run` with --redo {step}.",
            new.get(key, "not there"),
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def kept_recipe(folder: Path) -> Recipe:
    """The recipe that a run was made with. Raises UserError where `folder` is no run, Failure where its recipe can't be read."""
    path = folder / "recipe.json"
    try:
        return Recipe.model_validate(json.loads(path.read_bytes())["recipe"])
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            "RUN", str(folder), problem="is no run", mend="Name a run's folder, such as runs/tiny."
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ValidationError) as error:
        raise Failure(f"{path}: can't be read ({type(error).__name__}). Put it back, or make the run again.") from None


def kept_run(folder: Path) -> Run:
    """A run as it was made, to be looked at."""
    return Run(folder, LoadedRecipe(kept_recipe(folder), {}))


def _no_longer(path: Path, step: str) -> Failure:
    state = "has changed since" if path.is_file() else "is gone since"
    return Failure(f"{path}: {state} `{step}` made it. Put it back, or make it again with `fox run` and --redo {step}.")


def flat(inputs: Any, key: str = "") -> dict[str, Any]:
    """Nested tables as one: {"optimizer": {"eps": 1}} as {"optimizer.eps": 1}."""
    if isinstance(inputs, dict) and inputs:
        return {k: v for part, item in inputs.items() for k, v in flat(item, f"{key}.{part}" if key else part).items()}
    return {key: inputs}


def without_rows(inputs: dict[str, Any]) -> dict[str, Any]:
    """A step's inputs without how many rows go through the model at a time, which decides no more than how losses are rounded.

    The first manifests had them.
    """
    stages, tune = inputs.get("stage"), inputs.get("tune")
    less = dict(inputs)
    if isinstance(stages, dict):
        less["stage"] = {name: _without(stage, "rows") for name, stage in stages.items()}
    if isinstance(tune, dict):
        less["tune"] = _without(tune, "rows")
    return less


def _without(table: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != key}


def sections(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """Some of a recipe's tables, as they go into a manifest: without what only describes, so that a licence may be added later.

    JSON has no tuples or whole floats of its own, so it goes through JSON.
    """
    page = without_descriptions(recipe.model_dump())
    return json.loads(json.dumps({name: page[name] for name in names}))
