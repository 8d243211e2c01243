"""A run's folder. Each step leaves a manifest when it is done: what it read (hashes), what it made, and in how long.

A step is done when its manifest names what it would read now, and what it made is still there, unchanged. If a recipe or a
source has changed since, that is said, and nothing is thrown away unasked.
"""

from __future__ import annotations

import datetime
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fox
from fox.artifacts import sha256_of, write_json
from fox.errors import Failure, UserError
from fox.recipe import LoadedRecipe, Recipe

STEPS: dict[str, tuple[str, ...]] = {
    "tokenizer": ("tokenizer",),
    "data": ("data",),
    "pretrain": ("model", "pretrain"),
    "tune": ("tuned", "tune"),
    "eval": ("eval",),
    "report": ("report",),
}
"""The steps in their order, and the folders that each fills. The first of them is what later steps read."""


@dataclass
class Run:
    """A recipe and the folder that it fills."""

    folder: Path
    loaded: LoadedRecipe
    _unchanged: set[str] = field(default_factory=set)
    """Steps whose files were found to be as they were made; each is looked at once."""

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe

    def manifest(self, step: str) -> dict[str, Any] | None:
        """What a step said when it was done, or None where it is not done."""
        path = self._manifest_path(step)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
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
        manifest = self.manifest(step)
        if manifest is None:
            return False
        old, new = flat(manifest["inputs"]), flat(inputs)
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                was = "was not there" if key not in old else f"was {old[key]!r}"
                raise UserError(
                    key,
                    new.get(key, "not there"),
                    problem=f"{was} when `{step}` was done in {self.folder}",
                    mend=f"Go back to that, keep both with --out, or do `{step}` and what follows again with --redo {step}.",
                )
        self._check_outputs(step, manifest)
        return True

    def finish(self, step: str, inputs: dict[str, Any], facts: dict[str, Any], started: float) -> None:
        """Write the manifest of a step, as its last act."""
        made = STEPS[step][0]
        outputs = {
            str(path.relative_to(self.folder)): sha256_of(path)
            for path in sorted((self.folder / made).rglob("*"))
            if path.is_file()
        }
        began = datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(timespec="seconds")
        write_json(
            self._manifest_path(step),
            {
                "step": step,
                "fox": fox.__version__,
                "started": began.replace("+00:00", "Z"),
                "seconds": round(time.time() - started, 1),
                "inputs": inputs,
                "outputs": outputs,
                "facts": facts,
            },
        )

    def undo(self, first: str) -> list[str]:
        """Remove what `first` and all later steps made; their names."""
        undone = list(STEPS)[list(STEPS).index(first) :]
        self._unchanged.difference_update(undone)
        for step in undone:
            self._manifest_path(step).unlink(missing_ok=True)
            for name in STEPS[step]:
                shutil.rmtree(self.folder / name, ignore_errors=True)
        return undone

    def write_recipe(self) -> None:
        """Keep the resolved recipe with the run."""
        rows = [[key, value, origin] for key, value, origin in self.loaded.rows()]
        write_json(self.folder / "recipe.json", {"recipe": self.recipe.model_dump(), "rows": rows})

    def _check_outputs(self, step: str, manifest: dict[str, Any]) -> None:
        if step in self._unchanged:
            return
        for name, digest in manifest["outputs"].items():
            path = self.folder / name
            if not path.is_file() or sha256_of(path) != digest:
                state = "has changed since" if path.is_file() else "is gone since"
                raise Failure(
                    f"{path}: {state} `{step}` made it. Put it back, or make it again with `fox run` and --redo {step}."
                )
        self._unchanged.add(step)

    def _manifest_path(self, step: str) -> Path:
        return self.folder / "manifests" / f"{step}.json"


def flat(inputs: Any, key: str = "") -> dict[str, Any]:
    """Nested tables as one: {"optimizer": {"eps": 1}} as {"optimizer.eps": 1}."""
    if isinstance(inputs, dict) and inputs:
        return {k: v for part, item in inputs.items() for k, v in flat(item, f"{key}.{part}" if key else part).items()}
    return {key: inputs}


def sections(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """Some of a recipe's tables, as they go into a manifest. JSON has no tuples or whole floats of its own, so it goes through JSON."""
    return json.loads(json.dumps({name: recipe.model_dump()[name] for name in names}))
