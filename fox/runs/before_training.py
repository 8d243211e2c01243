"""What is looked at before a training begins or goes on, so that it does not fail, or teach the wrong thing, hours later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from fox.data.shards import shard_path
from fox.errors import RecipeError
from fox.progress import meter
from fox.recipe import Recipe
from fox.recipe.stage import Stage
from fox.runs.folder import Run, flat
from fox.runs.rows import attention_keeps_weights


def check_same_training(run: Run, step: str, stages: Mapping[str, Stage], inputs: Mapping[str, Any]) -> None:
    """Raise RecipeError where `step`, a training of these stages from these inputs, was begun as another. Nothing is changed by then."""
    from fox.train.stages import check_same_run

    check_same_run(run.recipe, stages, run.folder / step, flat(inputs))


def check_memory(recipe: Recipe, stages: Mapping[str, Stage], vocab_size: int) -> None:
    """Raise RecipeError where a step of these stages would not have the memory that it takes, by estimate: on this process's GPU,
    or in the share of this machine's memory that each of its processes has.

    The model is taken to be cut among all processes. With tensor parallel, which cuts activations too, nothing is looked at.
    """
    from fox.plan.fits import PROCESS_BYTES, too_little_memory
    from fox.plan.size import count_parameters
    from fox.train.machine import device, free_bytes_of_rank, peak_memory_bytes, ranks_here, resolve_precision
    from fox.train.team import current_team

    free, ranks = free_bytes_of_rank(), current_team().size
    if free is None or recipe.train.tensor_parallel > 1:
        return
    on_gpu = device().type == "cuda"
    beside = 0 if on_gpu else PROCESS_BYTES  # what torch keeps on a GPU is not free there by now
    if ranks > 1 and not on_gpu:  # all of them have begun, too, and the leader will have the whole model in float32
        whole = 4 * count_parameters(recipe.model, vocab_size).total
        beside = max(0, PROCESS_BYTES - peak_memory_bytes()) + whole // ranks_here()
    bf16, keeps_weights = resolve_precision("auto") == "bf16", not on_gpu and attention_keeps_weights(recipe)
    problems = [
        problem
        for key, stage in stages.items()
        for problem in too_little_memory(recipe, key, stage, vocab_size, free, bf16, keeps_weights, ranks, beside)
    ]
    if problems:
        raise RecipeError(problems)


def check_undamaged(run: Run, read: Mapping[str, Iterable[str]], console: Console) -> None:
    """Raise Failure where a file that is about to be read is not what a step made of it, to the last bit.

    `read` has, for each step, the files. All are hashed: storage that loses a bit changes neither a file's size nor its time,
    and a training would take it in for good.
    """
    files = {step: list(names) for step, names in read.items()}
    size = sum((run.folder / name).stat().st_size for names in files.values() for name in names)
    with meter("check files", size, "bytes", console=console) as shown:
        for step, names in files.items():
            run.check_contents(step, names, shown)


def shards_of(run: Run, sources: Iterable[str], split: str) -> list[str]:
    """The files of these sources' shards of a split that a training reads, as the manifest of the data names them."""
    shards = [shard_path(Path("data"), source, split) for source in sources]
    read = {str(shard.with_name(f"{shard.name}{ending}")) for shard in shards for ending in ("", ".index", ".loss")}
    return [name for name in run.needs("data")["outputs"] if name in read]


def sources_of(recipe: Recipe, stages: Mapping[str, Stage]) -> list[str]:
    """The sources that some stage learns from."""
    learnt = {source for stage in stages.values() for key in stage.mix for source in recipe.sources_of(key, stage.mix)}
    return [source for source in recipe.source if source in learnt]
