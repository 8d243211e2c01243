"""What each key may say alone, but not beside the others. All of it is found before any work starts.

A check that meets a hole (a value that is missing or faulty, which has its own Problem) ends there; the others go on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import TypeVar

from fox.errors import Problem
from fox.recipe.keys import KeyPath, dotted
from fox.recipe.schema import Hole, Recipe, Schedule, Stage

KINDS = ("text", "chat")
MODELS = ("base", "tuned")
LONGEST_NAME = 100  # bytes: names get endings such as .manifest.json, and file systems end at 255

Found = TypeVar("Found")


def contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Every pair of values in `recipe` that cannot both hold, as a Problem with a mend."""
    for check in (_source_names, _stage_names, _run_name, _head_dim, _key_value_heads, _unused_sources, _schedules):
        yield from _known(check(recipe))
    for key, stage in _known(_stages(recipe)):
        for check_stage in (_fits_the_model, _whole_passes, _mix, _chunk_lengths):
            yield from _known(check_stage(recipe, key, stage))


def _known(found: Iterator[Found]) -> Iterator[Found]:
    with contextlib.suppress(Hole):
        yield from found


def _stages(recipe: Recipe) -> Iterator[tuple[KeyPath, Stage]]:
    """The stages of the curriculum, and tuning, which is one more."""
    for name, stage in recipe.stage.items():
        yield ("stage", name), stage
    if recipe.tune:
        yield ("tune",), recipe.tune


def _run_name(recipe: Recipe) -> Iterator[Problem]:
    yield from _file_name(("name",), recipe.name)


def _stage_names(recipe: Recipe) -> Iterator[Problem]:
    for name in recipe.stage:
        if name in MODELS:
            yield Problem(f"stage.{name}", f"{name} is what the results call a model", "Give the stage another name.")
        else:
            yield from _file_name(("stage", name), name)


def _source_names(recipe: Recipe) -> Iterator[Problem]:
    for name in recipe.source:
        if name in KINDS:
            yield Problem(f"source.{name}", f"{name} is a kind, not a name", f"Call it {name}s, say.")
        else:
            yield from _file_name(("source", name), name)


def _file_name(key: KeyPath, name: str) -> Iterator[Problem]:
    if not re.fullmatch(r"\w[\w.-]*", name):
        mend = "Use letters, digits, '-', '_' and '.', and begin with a letter or digit."
        yield Problem(dotted(key), "can't be a file's name, and it becomes one", mend, name)
    elif len(name.encode()) > LONGEST_NAME:
        yield Problem(
            dotted(key), f"is longer than {LONGEST_NAME} bytes, and becomes a file's name", "Shorten it.", name
        )


def _head_dim(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    heads = model.num_attention_heads
    if model.head_dim is not None:
        if model.head_dim % 2:
            mend = f"Try -o model.head_dim={model.head_dim + 1}."
            yield Problem("model.head_dim", "is odd, and rotary positions turn pairs", mend, model.head_dim)
    elif model.hidden_size % heads:
        mend = f"Try -o model.hidden_size={_nearest(model.hidden_size, 2 * heads)}, or give model.head_dim."
        yield Problem("model.hidden_size", f"is no multiple of num_attention_heads = {heads}", mend, model.hidden_size)
    elif model.hidden_size // heads % 2:
        mend = f"Try -o model.hidden_size={_nearest(model.hidden_size, 2 * heads)}, or give model.head_dim."
        reason = f"makes heads of size {model.hidden_size // heads}, which is odd, and rotary positions turn pairs"
        yield Problem("model.hidden_size", reason, mend, model.hidden_size)


def _key_value_heads(recipe: Recipe) -> Iterator[Problem]:
    heads, groups = recipe.model.num_attention_heads, recipe.model.num_key_value_heads
    if heads % groups:
        fits = [n for n in range(1, min(heads, 1024) + 1) if heads % n == 0]
        mend = f"Use {'one of ' if len(fits) > 1 else ''}{', '.join(map(str, fits))}."
        yield Problem("model.num_key_value_heads", f"does not divide num_attention_heads = {heads}", mend, groups)


def _schedules(recipe: Recipe) -> Iterator[Problem]:
    if recipe.tune:
        yield from _known(_schedule("tune.schedule", recipe.tune.schedule, recipe.tune))
    yield from _schedule("schedule", recipe.schedule, *recipe.stage.values())


def _schedule(key: str, schedule: Schedule, *stages: Stage) -> Iterator[Problem]:
    tokens = sum(stage.tokens for stage in stages)
    if schedule.warmup_tokens + schedule.decay_tokens > tokens:
        yield Problem(
            f"{key}.decay_tokens",
            f"together with warmup_tokens = {schedule.warmup_tokens} is more than the {tokens} tokens there are",
            f"Make both together at most {tokens}.",
            schedule.decay_tokens,
        )


def _fits_the_model(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    longest = recipe.model.max_position_embeddings
    if stage.row_length > longest:
        mend = f"Shorten the chunks, or try -o model.max_position_embeddings={stage.row_length}."
        reason = f"is longer than model.max_position_embeddings = {longest}"
        yield Problem(f"{dotted(key)}.chunk_length", reason, mend, stage.chunk_length)


def _whole_passes(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    pass_tokens = stage.rows * stage.row_length
    if stage.batch_tokens % pass_tokens:
        fits = _nearest(stage.batch_tokens, pass_tokens)
        mend = f"Try -o {dotted(key)}.batch_tokens={fits}, or change {dotted(key)}.rows."
        reason = f"is no multiple of rows x chunk length = {pass_tokens}"
        yield Problem(f"{dotted(key)}.batch_tokens", reason, mend, stage.batch_tokens)


def _mix(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    for mix_key in stage.mix:
        yield from _known(_mix_key(recipe, key, stage, mix_key))


def _mix_key(recipe: Recipe, key: KeyPath, stage: Stage, mix_key: str) -> Iterator[Problem]:
    at = dotted((*key, "mix", mix_key))
    if mix_key not in recipe.source and mix_key not in KINDS:
        mend = f"Sources: {', '.join(recipe.source)}. Kinds: {', '.join(KINDS)}."
        yield Problem(at, "is neither a source nor a kind", mend)
        return
    named = recipe.sources_of(mix_key, stage.mix)
    texts = [name for name in named if recipe.source[name].kind == "text"]
    if not named:
        yield Problem(at, "stands for no source", f"Add a source of kind {mix_key!r}, or leave it out.")
    elif texts and key == ("tune",):
        reason = f"brings in {', '.join(texts)}, of kind 'text', and tuning learns from replies alone"
        yield Problem(at, reason, "Name sources of kind 'chat'.")


def _chunk_lengths(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    if not isinstance(stage.chunk_length, dict):
        return
    row = stage.row_length
    for mix_key in stage.mix:
        if mix_key not in stage.chunk_length:
            reason = f"says nothing of {mix_key}, which is in the mix"
            yield Problem(f"{dotted(key)}.chunk_length", reason, f"Add {dotted((mix_key,))} = {row}.")
    for mix_key, length in stage.chunk_length.items():
        at = dotted((*key, "chunk_length", mix_key))
        if mix_key not in stage.mix:
            yield Problem(at, "is not in the mix", "Leave it out, or add it to the mix.", length)
        elif row % length:
            reason = f"does not divide the longest chunk, {row}, and rows are cut evenly"
            yield Problem(at, reason, f"Use a divisor of {row}.", length)


def _unused_sources(recipe: Recipe) -> Iterator[Problem]:
    used = {name for _, stage in _stages(recipe) for key in stage.mix for name in recipe.sources_of(key, stage.mix)}
    for name in recipe.source:
        if name not in used:
            reason = "is in no stage's mix, so nothing would be learnt from it"
            first = next(iter(recipe.stage))
            yield Problem(dotted(("source", name)), reason, f"Try -o {dotted(('stage', first, 'mix', name))}=1.")


def _nearest(value: int, unit: int) -> int:
    """The multiple of `unit` that is nearest to `value`, and not 0."""
    return max(1, (value + unit // 2) // unit) * unit
