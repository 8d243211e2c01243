"""What would go wrong with a recipe on these devices, each with the smallest change that mends it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from fox.errors import Problem
from fox.plan.gpus import GPUS, Gpu
from fox.plan.memory import StageMemory, usable_bytes
from fox.recipe.stage import Stage

MemoryOf = Callable[[Stage, int, int], StageMemory]
"""The memory of one device, from a stage, the number of devices and the rows of a pass."""


def indivisible_batch(key: str, stage: Stage, devices: int) -> Iterator[Problem]:
    """A step must be a whole number of passes on every device."""
    pass_tokens = devices * stage.rows * stage.row_length
    if stage.batch_tokens % pass_tokens == 0:
        return
    nearest = max(1, round(stage.batch_tokens / pass_tokens)) * pass_tokens
    mends = [f"-o {key}.batch_tokens={nearest}"]
    rows = [n for n in range(1, stage.rows) if stage.batch_tokens % (devices * n * stage.row_length) == 0]
    if rows:
        mends.append(f"-o {key}.rows={rows[-1]}")
    fewer = [n for n in range(1, devices) if stage.batch_tokens % (n * stage.rows * stage.row_length) == 0]
    if fewer:
        mends.append(f"--gpus {fewer[-1]}")
    yield Problem(
        f"{key}.batch_tokens",
        "is no multiple of devices x rows x row length"
        f" = {devices} x {stage.rows} x {stage.row_length} = {pass_tokens}",
        f"{', or '.join(mends)}.",
        stage.batch_tokens,
    )


def too_large(key: str, stage: Stage, devices: int, gpu: Gpu, memory_of: MemoryOf) -> Iterator[Problem]:
    """A pass must fit a GPU with its activations kept. What helps: rows, recomputation, more or larger GPUs."""
    limit = usable_bytes(gpu)
    memory = memory_of(stage, devices, stage.rows)
    if memory.total <= limit:
        return
    divisors = [n for n in range(1, stage.rows) if stage.rows % n == 0]
    rows = [n for n in divisors if memory_of(stage, devices, n).total <= limit]
    counts = [n for n in _divisors(stage.batch_tokens // (stage.rows * stage.row_length)) if n > devices]
    more = [n for n in counts if memory_of(stage, n, stage.rows).total <= limit]
    mends = []
    if rows:
        mends.append(f"-o {key}.rows={rows[-1]} ({_gb(memory_of(stage, devices, rows[-1]).total)})")
    if memory.total_recomputed <= limit:
        mends.append(f"recompute activations ({_gb(memory.total_recomputed)}, up to a third more time)")
    if more:
        mends.append(f"--gpus {more[0]} ({_gb(memory_of(stage, more[0], stage.rows).total)})")
    if not mends:
        for count in counts:
            together = [n for n in divisors if memory_of(stage, count, n).total <= limit]
            if together:
                mends.append(f"--gpus {count} with -o {key}.rows={together[-1]}")
            if memory_of(stage, count, stage.rows).total_recomputed <= limit:
                mends.append(f"--gpus {count} and recompute activations")
            if mends:
                break
    larger = [other for other in GPUS.values() if usable_bytes(other) >= memory.total]
    if larger:
        mends.append(f"--gpu {min(larger, key=lambda other: other.memory_gb).name}")
    yield Problem(
        f"{key}.rows",
        f"does not fit: {_gb(memory.total)} on each GPU, and {gpu.name} has {_gb(limit)} to use",
        f"Any of: {'; '.join(mends)}."
        if mends
        else "Nothing in the table would: make the model or the chunks smaller.",
        stage.rows,
    )


def too_large_here(
    key: str, stage: Stage, peak_bytes: int, bytes_per_row: int, machine_bytes: int
) -> Iterator[Problem]:
    """A step must fit the memory of this machine."""
    if peak_bytes <= machine_bytes or not machine_bytes:
        return
    fits = [n for n in _divisors(stage.rows) if peak_bytes - (stage.rows - n) * bytes_per_row <= machine_bytes]
    yield Problem(
        f"{key}.rows",
        f"does not fit: {_gb(peak_bytes)}, by what was measured in small, and this machine has {_gb(machine_bytes)}",
        f"-o {key}.rows={fits[-1]} ({_gb(peak_bytes - (stage.rows - fits[-1]) * bytes_per_row)})."
        if fits
        else "A single row would not fit either: shorten the chunks, or make the model smaller.",
        stage.rows,
    )


def wrong_peak(precision: str, gpu: Gpu) -> Iterator[Problem]:
    """The peaks in the table are for bfloat16."""
    if precision == "float32":
        yield Problem(
            "train.precision",
            f"is far slower than the bfloat16 peak of {gpu.name}, by which the time is told",
            "-o train.precision=bf16, or measure a short run and give --tokens-per-second.",
            precision,
        )


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(max(number, 0)) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
