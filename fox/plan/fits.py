"""Whether a recipe's training fits the memory that is free, told before its first step with the setting that would."""

from __future__ import annotations

from collections.abc import Iterator

from fox.errors import Problem
from fox.plan.memory import StageMemory, stage_memory
from fox.plan.size import count_parameters
from fox.recipe.schema import Recipe, Tune
from fox.recipe.stage import Stage

PROCESS_BYTES = 600_000_000
"""Of a process that has imported torch and done a product."""


def too_little_memory(
    recipe: Recipe,
    key: str,
    stage: Stage,
    vocab_size: int,
    free_bytes: int,
    bf16_products: bool,
    keeps_weights: bool = True,
    devices: int = 1,
    beside_bytes: int = PROCESS_BYTES,
) -> Iterator[Problem]:
    """A Problem where a step of `stage` (at `key`) takes more than the `free_bytes` of one of `devices` that share it, by estimate.

    `bf16_products`: whether they would multiply in bf16 if they may choose. `keeps_weights`: see `stage_memory`. `beside_bytes` are
    what a process takes there beside its part of the step.
    """

    def needed(recipe: Recipe, stage: Stage) -> int:
        return beside_bytes + step_memory(recipe, stage, vocab_size, bf16_products, devices, keeps_weights).total

    total = needed(recipe, stage)
    if total <= free_bytes:
        return
    for overrides, other in _smaller(recipe, key, stage, devices):
        if needed(*other) <= free_bytes:
            mend = f"Try {' '.join(f'-o {one}' for one in overrides)} ({_gb(needed(*other))})."
            break
    else:
        mend = "No setting of rows, recomputation, optimiser or precision would fit: make the model smaller."
        if devices > 1:
            mend = "No rows and no recomputation would fit: share the model among more GPUs or machines, or make it smaller."
    each, share = (f" in each of {devices} processes", " for each") if devices > 1 else ("", "")
    reason = f"needs about {_gb(total)} of memory{each}, and {_gb(free_bytes)} are free{share}"
    yield Problem(f"{key}.rows", reason, mend, stage.rows)


def step_memory(
    recipe: Recipe, stage: Stage, vocab_size: int, bf16_products: bool, devices: int = 1, keeps_weights: bool = True
) -> StageMemory:
    """What a step of `stage` holds, on each of `devices` that multiply in bf16 where they may, if `bf16_products`."""
    wants_bf16 = recipe.train.precision == "bf16" or (recipe.train.precision != "float32" and bf16_products)
    optimizer = stage.optimizer if isinstance(stage, Tune) else recipe.optimizer
    parameters = count_parameters(recipe.model, vocab_size)
    element_bytes = 2 if wants_bf16 else 4
    return stage_memory(
        recipe.model,
        parameters,
        vocab_size,
        stage,
        devices,
        stage.rows,
        element_bytes,
        keeps_weights,
        optimizer,
        recipe.train,
    )


def _smaller(recipe: Recipe, key: str, stage: Stage, devices: int) -> Iterator[tuple[list[str], tuple[Recipe, Stage]]]:
    """Overrides that need ever less, the least change of meaning first: fewer rows, recomputation, then other weights and moments."""
    fewer = [rows for rows in range(stage.rows - 1, 0, -1) if stage.rows % rows == 0]
    recomputing = _with(recipe, activation_checkpointing=True)
    told = ["train.activation_checkpointing=true"]
    if recipe.train.precision != "bf16-weights":  # whose steps are of one pass
        yield from (([f"{key}.rows={rows}"], (recipe, _with_rows(stage, rows))) for rows in fewer)
    yield told, (recomputing, stage)
    if recipe.train.precision != "bf16-weights":
        yield from (([f"{key}.rows={rows}", *told], (recomputing, _with_rows(stage, rows))) for rows in fewer)
    if devices > 1:  # what follows is for one process
        return
    of = "tune.optimizer" if isinstance(stage, Tune) else "optimizer"
    told = [*told, "train.precision=bf16-weights", f"{of}.name=adafactor", f"{of}.peak_learning_rate=1e-2"]
    adafactor = {"optimizer": recipe.optimizer.model_copy(update={"name": "adafactor"})}
    narrow = _with(recomputing, precision="bf16-weights").model_copy(update=adafactor)
    if isinstance(stage, Tune):
        stage = stage.model_copy(update=adafactor)
    for rows in (stage.rows, *fewer):
        one_pass = [f"{key}.rows={rows}", f"{key}.batch_tokens={rows * stage.row_length}"]
        yield [*told, *one_pass], (narrow, _with_rows(stage, rows))


def _with(recipe: Recipe, **train: object) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})


def _with_rows(stage: Stage, rows: int) -> Stage:
    return stage.model_copy(update={"rows": rows})


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
