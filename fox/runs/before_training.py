"""What is looked at before a training begins or goes on, so that it does not fail, or teach the wrong thing, hours later."""

from __future__ import annotations

from collections.abc import Mapping

from fox.errors import RecipeError
from fox.recipe import Recipe
from fox.recipe.stage import Stage
from fox.runs.rows import attention_keeps_weights


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
