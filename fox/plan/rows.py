"""Rows of a pass, fitted to the memory of a machine: what `rows = "auto"` stands for."""

from __future__ import annotations

import math

from fox.plan.fits import PROCESS_BYTES, step_memory
from fox.recipe.schema import Recipe
from fox.recipe.stage import Stage

FILLED_FRACTION = 0.8
"""Of what is free at the start: the estimate may be off, and other programs may grow."""

PASS_TOKENS_PER_THREAD = 1024
"""On a processor a larger pass takes memory and gives nothing for it. Tokens a second of a block and head, on 2 threads of an AVX2
EPYC: small-cpu.toml (384 wide) 1,966 with 512 tokens a pass, 1,769 with 2,048, 1,557 with 8,192; tiny.toml 5,139 with 256,
6,995 with 512, 7,253 with 2,048, 6,367 with 16,384. With more threads it is taken to grow with them, which was not measured."""


def possible_rows(stage: Stage, ranks: int = 1) -> list[int]:
    """The rows, from 1 up, of which every step of `stage` is a whole number of passes on each of `ranks` processes.

    Where the processes can't share the steps at all, those of one process: the run will say so.
    """
    tokens = math.gcd(stage.batch_tokens, stage.batch_ramp.start) if stage.batch_ramp else stage.batch_tokens
    rows = max(1, tokens // stage.row_length)
    each = rows // ranks if rows % ranks == 0 else rows
    return sorted({n for low in range(1, math.isqrt(each) + 1) if each % low == 0 for n in (low, each // low)})


def fitted_rows(
    recipe: Recipe,
    stage: Stage,
    vocab_size: int,
    free_bytes: int | None,
    bf16_products: bool,
    threads: int | None,
    ranks: int = 1,
    keeps_weights: bool = True,
) -> int:
    """The most rows that fit `free_bytes` of one process (None: unknown) and are worth it; 1 where nothing fits.

    `threads` are those of a processor, `bf16_products` whether it would multiply in bf16 if it may choose; None for a GPU, whose
    passes are worth their memory at any size. `keeps_weights`, of a processor: see `stage_memory`.
    """
    most_tokens = PASS_TOKENS_PER_THREAD * threads if threads else math.inf
    best = 1
    for rows in possible_rows(stage, ranks):
        if rows > 1 and rows * stage.row_length > most_tokens:
            break
        other = stage.model_copy(update={"rows": rows})
        kept = keeps_weights and threads is not None
        needed = step_memory(recipe, other, vocab_size, bf16_products, ranks, kept).total
        if free_bytes is not None and PROCESS_BYTES + needed > FILLED_FRACTION * free_bytes:
            break
        best = rows
    return best
