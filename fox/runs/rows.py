"""Where a recipe leaves rows to the machine (`rows = "auto"`): fitted once, and kept with the run, for rows decide how losses are rounded.

RUN/rows.json has what was chosen and for what; a run that goes on keeps it, however much memory is free by then, so that it
has the losses of one that never stopped, bit for bit. With other rows, or ranks that they do not divide among, it goes on all the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fox.artifacts import put_back_on, sha256_of_json, write_json
from fox.errors import UserError
from fox.plan.rows import fitted_rows, possible_rows
from fox.plan.size import head_dim
from fox.recipe import LoadedRecipe, Recipe
from fox.recipe.keys import dotted
from fox.recipe.schema import MAY_CHANGE, Tune
from fox.recipe.stage import Stage
from fox.runs.folder import STEPS

_FILE = "rows.json"


def fit_rows(loaded: LoadedRecipe, folder: Path, redo: str | None = None, ranks: int = 1) -> LoadedRecipe:
    """The recipe with a number of rows in every stage: those that the run in `folder` began with, or what fits the free memory now.

    What `redo` and later steps made is not gone on with, so their rows are fitted anew. `ranks` share each step's rows. Raises
    UserError on a GPU, to which none are fitted.
    """
    if not loaded.auto_rows:
        return loaded
    kept = _kept(folder)
    rows = {}
    for key, stage in stages_of(loaded.recipe).items():
        if key not in loaded.auto_rows:
            continue
        begun = kept.get(key, {}) if not _is_redone(key, redo) else {}
        same = begun.get("fitted_for") == _decides(loaded.recipe, stage) and begun.get("rows") in possible_rows(
            stage, ranks
        )
        rows[key] = begun["rows"] if same else _fitted_here(loaded.recipe, key, stage, ranks)
    return loaded.with_rows(rows)


def keep_rows(loaded: LoadedRecipe, folder: Path) -> None:
    """Write down what was fitted, for the run that goes on."""
    if not loaded.fitted_rows:
        return
    stages = stages_of(loaded.recipe)
    page = {
        key: {"rows": rows, "fitted_for": _decides(loaded.recipe, stages[key])}
        for key, rows in loaded.fitted_rows.items()
    }
    if page != _kept(folder):
        write_json(folder / _FILE, page)


@contextlib.contextmanager
def rows_kept(loaded: LoadedRecipe, folder: Path) -> Iterator[None]:
    """Write down what was fitted; or leave what was there before, where the block finds that the recipe can't be used."""
    with put_back_on(UserError, folder / _FILE):
        keep_rows(loaded, folder)
        yield


def stages_of(recipe: Recipe) -> dict[str, Stage]:
    """The stages of the curriculum and the tuning, by their keys (`stage.NAME`, `tune`)."""
    stages: dict[str, Stage] = {dotted(("stage", name)): stage for name, stage in recipe.stage.items()}
    return {**stages, "tune": recipe.tune} if recipe.tune else stages


def _fitted_here(recipe: Recipe, key: str, stage: Stage, ranks: int) -> int:
    import torch

    from fox.train.machine import device, free_bytes_of_rank, resolve_precision

    if device().type != "cpu":
        raise UserError(
            f"{key}.rows",
            "auto",
            problem="is for processors: rows are not fitted to a GPU",
            mend=f"Give a number, such as -o {key}.rows=8; `fox plan` with --gpu tells whether it fits.",
        )
    each = free_bytes_of_rank()
    bf16, threads = resolve_precision("auto") == "bf16", torch.get_num_threads()
    keeps_weights = attention_keeps_weights(recipe)
    return fitted_rows(recipe, stage, recipe.tokenizer.vocab_size, each, bf16, threads, ranks, keeps_weights)


def attention_keeps_weights(recipe: Recipe) -> bool:
    """Whether attention keeps each row's weights on this machine, which the kernel of our own does not."""
    from fox.kernels.native.attention import can_attend
    from fox.train.machine import device, product_type, resolve_precision

    return not can_attend(device(), product_type(resolve_precision(recipe.train.precision)), head_dim(recipe.model))


def _is_redone(key: str, redo: str | None) -> bool:
    step = "tune" if key == "tune" else "pretrain"
    return redo is not None and list(STEPS).index(redo) <= list(STEPS).index(step)


def _decides(recipe: Recipe, stage: Stage) -> str:
    """The hash of what rows are fitted for: with another model or batch, they are another matter."""
    optimizer = stage.optimizer if isinstance(stage, Tune) else recipe.optimizer
    return sha256_of_json(
        {
            "model": recipe.model.model_dump(),
            "vocab_size": recipe.tokenizer.vocab_size,
            "stage": stage.model_dump(include={"chunk_length", "batch_tokens", "batch_ramp"}),
            "optimizer": optimizer.name,
            "train": recipe.train.model_dump(exclude=set(MAY_CHANGE)),
        }
    )


def _kept(folder: Path) -> dict[str, Any]:
    try:
        page = json.loads((folder / _FILE).read_bytes())
    except (
        OSError,
        ValueError,
        RecursionError,
    ):  # none yet; or damaged, and then what was trained tells of the difference
        return {}
    return (
        {key: value for key, value in page.items() if isinstance(value, Mapping)} if isinstance(page, Mapping) else {}
    )
