"""How long a recipe takes on given devices, whether it fits them, and what is wrong with that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fox.errors import Problem, UserError
from fox.plan.gpus import Gpu, find_gpu
from fox.plan.memory import StageMemory, stage_memory, usable_bytes
from fox.plan.problems import indivisible_batch, too_large, too_large_here, wrong_peak
from fox.plan.size import (
    Parameters,
    attention_flops_per_position,
    count_parameters,
    kv_cache_bytes_per_token,
    matrix_flops,
    mean_chunk_length,
)
from fox.recipe.schema import Model, Recipe, Schedule, Tune
from fox.recipe.stage import Stage

ASSUMED_MFU = 0.40
"""The share of a GPU's peak that training uses, where nothing was measured. MosaicML's llm-foundry published 40.9 % for
a 1.3B model in 2K chunks on 64 H100, and 37.7 % in 8K chunks on 8 (scripts/train/benchmarking/README.md), counted as
here; torchtitan 33 to 39 % for Llama 3.1 8B on H100 (docs/performance.md). Small models reach less."""

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True)
class Measured:
    """What this machine was seen to do in a stage, with the real modules in small (fox/train/speed.py)."""

    tokens_per_second: float
    peak_bytes: int
    """Of the whole process, at its fullest moment."""
    bytes_per_row: int
    """By how much one row of a pass makes that more."""
    machine_bytes: int
    """All the memory that the machine has; 0 where it does not tell."""
    compiled: bool
    """Whether blocks were compiled, as torch.compile makes them for training."""
    timed_rows: int
    """How many rows of a pass were timed; the rest is taken in proportion."""


@dataclass(frozen=True)
class StagePlan:
    """One stage of the curriculum, or the tuning. `key` is its place in the recipe; FLOPs are forward and backward."""

    key: str
    name: str
    tokens: int
    """Trained on: whole steps of batch_tokens."""
    chunk_length: int | dict[str, Any]
    """As the recipe has it."""
    chunk_lengths: tuple[int, ...]
    """All that there are, from the shortest."""
    mean_chunk_length: float
    rows: int
    row_length: int
    batch_tokens: int
    steps: int
    warmup_steps: int
    decay_steps: int
    passes_per_step: int | None
    """Forward and backward passes of each device in a step; None where the batch does not divide."""
    flops_per_token: float
    flops_per_token_causal: float
    flops: float
    memory: StageMemory
    tokens_per_second: float | None
    """Of all devices together."""
    mfu: float | None
    days: float | None
    measured: Measured | None = None


@dataclass(frozen=True)
class Plan:
    """What a recipe takes. `as_dict` is the same for machines."""

    name: str
    model: Model
    vocab_size: int
    devices: int
    gpu: Gpu | None
    mfu: float | None
    """Assumed or given; None where a rate was given instead, or nothing is known."""
    mfu_is_assumed: bool
    element_bytes: int
    """Of matrix products: 2 for bfloat16, 4 for float32."""
    optimizer: str
    """Of the pre-training."""
    precision: str
    """As the recipe has it."""
    parameters: Parameters
    attention_flops_per_position: int
    kv_cache_bytes_per_token: int
    stages: tuple[StagePlan, ...]
    problems: tuple[Problem, ...]

    @property
    def tokens(self) -> int:
        return sum(stage.tokens for stage in self.stages)

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def days(self) -> float | None:
        days = [stage.days for stage in self.stages]
        return None if None in days else sum(day for day in days if day is not None)

    @property
    def usable_bytes(self) -> int | None:
        """Of one GPU's memory."""
        return usable_bytes(self.gpu) if self.gpu else None

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, text, lists and tables, ready for `json.dumps`."""
        page = asdict(self)
        page["model"] = self.model.model_dump()
        page["problems"] = [str(problem) for problem in self.problems]
        page["parameters"]["total"] = self.parameters.total
        page["parameters"]["without_lookup"] = self.parameters.without_lookup
        page["parameters"]["without_embedding_and_head"] = self.parameters.without_embedding_and_head
        page["stages"] = list(page["stages"])
        for told, stage in zip(page["stages"], self.stages, strict=True):
            told["memory"]["loss"] = stage.memory.loss
            told["memory"]["total"] = stage.memory.total
            told["memory"]["total_recomputed"] = stage.memory.total_recomputed
        return page | {"tokens": self.tokens, "flops": self.flops, "days": self.days, "usable_bytes": self.usable_bytes}


def plan(
    recipe: Recipe,
    gpus: int = 1,
    gpu: str | None = None,
    mfu: float | None = None,
    tokens_per_second: float | None = None,
    measured: Mapping[str, Measured] | None = None,
    bf16_products: bool = True,
    keeps_weights: bool = True,
) -> Plan:
    """What `recipe` takes on `gpus` devices of the kind `gpu`, in parameters, FLOPs, bytes, steps and days.

    Time follows from `mfu`, the share of the peak in use (ASSUMED_MFU unless given), or from a measured
    `tokens_per_second` of all devices together, or from what was `measured` of each stage, by its key; with none of them
    it stays unknown. `bf16_products`: whether devices of no named kind multiply in bf16 where they may choose;
    `keeps_weights`, of these too: see `stage_memory`. Raises UserError where
    the figures asked for make no sense; what is wrong with the plan itself is in `problems`.
    """
    kind = _checked(gpus, gpu, mfu, tokens_per_second)
    assumed = kind is not None and mfu is None and tokens_per_second is None
    share = ASSUMED_MFU if assumed else mfu
    model, vocab_size = recipe.model, recipe.tokenizer.vocab_size
    parameters = count_parameters(model, vocab_size)
    element_bytes = _element_bytes(recipe.train.precision, kind is not None or bf16_products)
    peak_flops = gpus * kind.peak_tflops * 1e12 if kind else None
    stages: list[StagePlan] = []
    problems: list[Problem] = []

    def memory_of(stage: Stage, devices: int, rows: int) -> StageMemory:
        optimizer = stage.optimizer if isinstance(stage, Tune) else recipe.optimizer
        kept = keeps_weights and kind is None
        return stage_memory(
            model, parameters, vocab_size, stage, devices, rows, element_bytes, kept, optimizer, recipe.train
        )

    def add(key: str, name: str, stage: Stage, warmup_steps: int, decay_steps: int) -> None:
        attention = attention_flops_per_position(model) * mean_chunk_length(stage)
        matrices = matrix_flops(parameters.without_lookup)
        flops = matrices + attention
        seen = measured.get(key) if measured else None
        rate = tokens_per_second or (peak_flops * share / flops if peak_flops and share else None)
        if seen and rate is None:
            rate = seen.tokens_per_second
        passes, rest = divmod(stage.batch_tokens, gpus * stage.rows * stage.row_length)
        tokens = stage.total_tokens
        stages.append(
            StagePlan(
                key=key,
                name=name,
                tokens=tokens,
                chunk_length=stage.chunk_length,
                chunk_lengths=tuple(sorted({length for key in stage.mix for length in stage.lengths_of(key)})),
                mean_chunk_length=mean_chunk_length(stage),
                rows=stage.rows,
                row_length=stage.row_length,
                batch_tokens=stage.batch_tokens,
                steps=stage.steps,
                warmup_steps=warmup_steps,
                decay_steps=decay_steps,
                passes_per_step=None if rest else passes,
                flops_per_token=flops,
                flops_per_token_causal=matrices + attention / 2,
                flops=tokens * flops,
                memory=memory_of(stage, gpus, stage.rows),
                tokens_per_second=rate,
                mfu=rate * flops / peak_flops if rate and peak_flops else None,
                days=tokens / rate / SECONDS_PER_DAY if rate else None,
                measured=seen,
            )
        )
        problems.extend(indivisible_batch(key, stage, gpus))
        if kind:
            problems.extend(too_large(key, stage, gpus, kind, memory_of))
        elif seen:
            problems.extend(too_large_here(key, stage, seen.peak_bytes, seen.bytes_per_row, seen.machine_bytes))

    turns = _warmup_and_decay_steps(list(recipe.stage.values()), recipe.schedule)
    for (name, stage), (warmup_steps, decay_steps) in zip(recipe.stage.items(), turns, strict=True):
        add(f"stage.{name}", name, stage, warmup_steps, decay_steps)
    if recipe.tune:
        add("tune", "tune", recipe.tune, *_warmup_and_decay_steps([recipe.tune], recipe.tune.schedule)[0])
    if kind and tokens_per_second is None:
        problems.extend(wrong_peak(recipe.train.precision, kind))
    return Plan(
        name=recipe.name,
        model=model,
        vocab_size=vocab_size,
        devices=gpus,
        gpu=kind,
        mfu=share,
        mfu_is_assumed=assumed,
        element_bytes=element_bytes,
        optimizer=recipe.optimizer.name,
        precision=recipe.train.precision,
        parameters=parameters,
        attention_flops_per_position=attention_flops_per_position(model),
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(model),
        stages=tuple(stages),
        problems=tuple(problems),
    )


def _element_bytes(precision: str, bf16_products: bool) -> int:
    """Of activations. Weights that are kept in bf16 are multiplied in float32 where bf16 is not built in."""
    return 2 if precision == "bf16" or (precision != "float32" and bf16_products) else 4


def _checked(gpus: int, gpu: str | None, mfu: float | None, tokens_per_second: float | None) -> Gpu | None:
    if gpus < 1:
        raise UserError("--gpus", gpus, problem="is no number of devices", mend="Give 1 or more.")
    if tokens_per_second is not None and not (0 < tokens_per_second < math.inf):
        raise UserError("--tokens-per-second", tokens_per_second, problem="is no rate", mend="Give a number above 0.")
    if mfu is not None:
        if not 0 < mfu <= 1:
            mend = f"Give it as {mfu / 100:g}." if 1 < mfu <= 100 else "0.40 is usual."
            raise UserError("--mfu", mfu, problem="is no share of the peak between 0 and 1", mend=mend)
        if tokens_per_second is not None:
            raise UserError("--mfu", mfu, problem="and --tokens-per-second both say how fast it is", mend="Give one.")
        if gpu is None:
            raise UserError("--mfu", mfu, problem="is a share of a peak that is not known", mend="Give --gpu, too.")
    return find_gpu(gpu) if gpu is not None else None


def _warmup_and_decay_steps(stages: list[Stage], schedule: Schedule) -> list[tuple[int, int]]:
    """How many steps of each stage lie, whole or in part, in the warm-up and in the decay that span all stages."""
    ends = [0]
    for stage in stages:
        ends.append(ends[-1] + stage.total_tokens)
    falling = {"wsd": schedule.decay_tokens, "cosine": ends[-1] - schedule.warmup_tokens, "constant": 0}
    decay_starts = ends[-1] - max(0, falling[schedule.shape])
    turns = []
    for stage, start, end in zip(stages, ends, ends[1:], strict=False):
        warmup = max(0, min(end, schedule.warmup_tokens) - start)
        decay = max(0, end - max(start, decay_starts))
        steps_before = stage.steps_within(end - start - decay + 1) - 1
        turns.append((stage.steps_within(warmup), stage.steps - steps_before))
    return turns
