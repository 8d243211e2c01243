"""What each key may say alone, but not beside the others. All of it is found before any work starts.

A check that meets a hole (a value that is missing or faulty, which has its own Problem) ends there; the others go on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from fox.errors import Problem
from fox.recipe.keys import KeyPath, dotted
from fox.recipe.schema import TOP, Optimizer, Recipe, Schedule, Source
from fox.recipe.section import Hole, Section
from fox.recipe.stage import Stage, steps_saved

KINDS = ("text", "chat")
MODELS = ("start", "averaged", "base", "tuned")
CORPUS_FILES = ("files.json", "funnel.json", "quality.json", "quality.safetensors")
LONGEST_NAME = 100  # bytes: names get endings such as .manifest.json, and file systems end at 255

Found = TypeVar("Found")


def contradictions(recipe: Recipe) -> Iterator[Problem]:
    """Every pair of values in `recipe` that cannot both hold, as a Problem with a mend."""
    for check in (
        _source_names,
        _filtered_chats,
        _best,
        _quality,
        _stage_names,
        _run_name,
        _head_dim,
        _key_value_heads,
        _unused_sources,
        _executor,
        _schedules,
        _optimizers,
        _average,
        _milestones,
    ):
        yield from _known(check(recipe))
    for key, stage in _known(_stages(recipe)):
        for check_stage in (_fits_the_model, _whole_passes, _one_pass, _batch_ramp, _mix, _mix_follows, _chunk_lengths):
            yield from _known(check_stage(recipe, key, stage))


def _known(found: Iterator[Found]) -> Iterator[Found]:
    with contextlib.suppress(Hole):
        yield from found


def _executor(recipe: Recipe) -> Iterator[Problem]:
    executor = recipe.data.executor
    if executor and executor.kind == "slurm" and not executor.partition:
        reason = "Slurm is not told where to run the tasks"
        yield Problem("data.executor.partition", reason, "Name a partition; `sinfo` lists those that there are.", "")


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


def _filtered_chats(recipe: Recipe) -> Iterator[Problem]:
    for name, source in recipe.source.items():
        if source.kind == "chat" and source.filter:
            reason, key = "is about documents, and these are chats", dotted(("source", name, "filter"))
            yield Problem(key, reason, f"Leave it out, or set {dotted(('source', name, 'kind'))} to text.")


def _best(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with sources that have the best documents of others."""
    first: dict[str, str] = {}
    for name, source in recipe.source.items():
        if source.best_of is not None:
            yield from _known(_best_of(recipe, name, source, source.best_of, first))


def _best_of(recipe: Recipe, name: str, source: Source, of: str, first: dict[str, str]) -> Iterator[Problem]:
    at, other = dotted(("source", name)), recipe.source.get(of)
    texts = [n for n, s in recipe.source.items() if s.kind == "text" and s.best_of is None]
    mend = f"Name a source of documents: {', '.join(texts)}." if texts else "Add a source of documents."
    if other is None:
        yield Problem(f"{at}.path", f"is the best of {of or 'nothing'}, which is no source", mend, source.path)
    elif other.best_of is not None:
        yield Problem(f"{at}.path", f"is the best of {of}, which is itself the best of another", mend, source.path)
    elif other.kind == "chat":
        yield Problem(f"{at}.path", f"is the best of {of}, and these are chats, which have no score", mend, source.path)
    elif of in first:
        yield Problem(f"{at}.path", f"is the best of {of}, as {first[of]} is", "Leave one of the two out.", source.path)
    first.setdefault(of, name)
    if source.kind == "chat":
        reason = "is not what they are: the best documents of another source are documents"
        yield Problem(f"{at}.kind", reason, f"Try -o {at}.kind=text.", source.kind)
    if source.filter:
        reason = "has no use, since the documents have passed the filter of their source"
        yield Problem(f"{at}.filter", reason, f"Leave it out, or give it to {of}.")
    yield from _without_effect(at, source, ("files", "text_field", "max_bad_fraction"), f"{at}.path = {source.path!r}")


def _quality(recipe: Recipe) -> Iterator[Problem]:
    best = [name for name, source in recipe.source.items() if source.best_of is not None]
    if best and recipe.data.quality is None:
        mend = "Name files of examples: -o 'data.quality.good=[\"FILES\"]'."
        at, path = dotted(("source", best[0], "path")), recipe.source[best[0]].path
        yield Problem(at, "needs examples of what is good, and there is no [data.quality]", mend, path)
    elif recipe.data.quality is not None and not best:
        reason = "moves nothing, since no source has the best documents of another"
        texts = [name for name, source in recipe.source.items() if source.kind == "text"]
        mend = f"Try -o source.best.path={TOP}{texts[0] if texts else 'NAME'}, or leave it out."
        yield Problem("data.quality", reason, mend)


def _source_names(recipe: Recipe) -> Iterator[Problem]:
    for name in recipe.source:
        if name in KINDS:
            yield Problem(f"source.{name}", f"{name} is a kind, not a name", f"Call it {name}s, say.")
        elif name in CORPUS_FILES:
            yield Problem(
                dotted(("source", name)), "is what a corpus calls a file of its own", f"Call it {name[:-5]}, say."
            )
        elif re.fullmatch("[0-9]+", name):
            reason = "is a number, which chunk_length would take for a length"
            yield Problem(dotted(("source", name)), reason, f"Call it s{name}, say.")
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
    yield from _shape(key, schedule)
    tokens = sum(stage.tokens for stage in stages)
    if schedule.warmup_tokens + schedule.decay_tokens > tokens:
        yield Problem(
            f"{key}.decay_tokens",
            f"together with warmup_tokens = {schedule.warmup_tokens} is more than the {tokens} tokens there are",
            f"Make both together at most {tokens}.",
            schedule.decay_tokens,
        )


def _shape(key: str, schedule: Schedule) -> Iterator[Problem]:
    if schedule.shape == "wsd":
        if "decay_tokens" not in schedule.model_fields_set:
            yield Problem(f"{key}.decay_tokens", "is missing, and a schedule of shape wsd needs it", "Give it, or 0.")
        return
    unused = ("decay_tokens", "decay_shape", *(("final_fraction",) if schedule.shape == "constant" else ()))
    yield from _without_effect(key, schedule, unused, f"{key}.shape = {schedule.shape!r}")


def _optimizers(recipe: Recipe) -> Iterator[Problem]:
    if recipe.tune:
        yield from _known(_optimizer("tune.optimizer", recipe.tune.optimizer))
    yield from _optimizer("optimizer", recipe.optimizer)


def _optimizer(key: str, optimizer: Optimizer) -> Iterator[Problem]:
    unused = {"adamw": ("momentum",), "muon": (), "adafactor": ("beta1", "beta2", "eps", "momentum")}
    yield from _without_effect(key, optimizer, unused[optimizer.name], f"{key}.name = {optimizer.name!r}")


def _without_effect(key: str, section: Section, names: Sequence[str], beside: str) -> Iterator[Problem]:
    """A value other than the default that nothing reads would be dropped in silence."""
    for name in names:
        value, default = getattr(section, name), type(section).model_fields[name].default
        if value != default:
            yield Problem(f"{key}.{name}", f"changes nothing beside {beside}", f"Try -o {key}.{name}={default}.", value)


def _average(recipe: Recipe) -> Iterator[Problem]:
    wanted = recipe.train.average_checkpoints
    if not wanted:
        return
    stages, warmup_tokens = recipe.stage.values(), recipe.schedule.warmup_tokens
    saved = len(steps_saved(stages, recipe.train.checkpoint_every_steps, warmup_tokens))
    if wanted > saved:
        steps = len(steps_saved(stages, 1, warmup_tokens))
        reason = f"are more than the {saved} that are saved in the {steps} steps after the warm-up"
        every = f"checkpoint_every_steps={steps // wanted}" if wanted <= steps else f"average_checkpoints={saved}"
        mend = f"Try -o train.{every}."
        yield Problem("train.average_checkpoints", reason, mend, wanted)


def _milestones(recipe: Recipe) -> Iterator[Problem]:
    milestone, saved = recipe.train.milestone_every_steps, recipe.train.checkpoint_every_steps
    if milestone is not None and milestone % saved:
        reason = f"is no multiple of train.checkpoint_every_steps = {saved}, and what is not saved can't stay"
        mend = f"Try -o train.milestone_every_steps={_nearest(milestone, saved)}."
        yield Problem("train.milestone_every_steps", reason, mend, milestone)


def _one_pass(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    pass_tokens = stage.rows * stage.row_length
    if recipe.train.precision == "bf16-weights" and stage.batch_tokens > pass_tokens:
        reason = f"is more than one pass of rows x chunk length = {pass_tokens}, and in bf16 a sum of gradients loses the small ones"
        mend = f"Try -o {dotted(key)}.batch_tokens={pass_tokens}, more rows, or another train.precision."
        yield Problem(f"{dotted(key)}.batch_tokens", reason, mend, stage.batch_tokens)


def _fits_the_model(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    longest = recipe.model.max_position_embeddings
    if stage.row_length > longest:
        mend = f"Shorten the chunks, or try -o model.max_position_embeddings={stage.row_length}."
        if recipe.model.start_from is not None:
            mend = "Shorten the chunks: the model that it starts from reads no more."
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


def _batch_ramp(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    ramp, pass_tokens = stage.batch_ramp, stage.rows * stage.row_length
    if ramp is None:
        return
    at = dotted((*key, "batch_ramp"))
    if ramp.start % pass_tokens:
        reason = f"is no multiple of rows x chunk length = {pass_tokens}"
        yield Problem(f"{at}.start", reason, f"Try -o {at}.start={_nearest(ramp.start, pass_tokens)}.", ramp.start)
    if ramp.start >= stage.batch_tokens:
        reason = f"is not below batch_tokens = {stage.batch_tokens}, to which steps grow"
        yield Problem(f"{at}.start", reason, "Begin with smaller steps, or leave batch_ramp out.", ramp.start)
    if ramp.tokens > stage.tokens:
        reason = f"is more than the stage's {stage.tokens}, so that batch_tokens is never reached"
        yield Problem(f"{at}.tokens", reason, f"Make it at most {stage.tokens}.", ramp.tokens)


def _mix_follows(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    sources = {source for mix_key in stage.mix for source in recipe.sources_of(mix_key, stage.mix)}
    if stage.mix_follows is None:
        yield from _without_effect(dotted(key), stage, ("mix_every_steps",), "a mixture that follows nothing")
    elif len(sources) == 1:
        reason = f"has nothing to choose from: {next(iter(sources))} is all there is in the mix"
        yield Problem(f"{dotted(key)}.mix_follows", reason, "Leave it out, or add sources.", stage.mix_follows)


def _chunk_lengths(recipe: Recipe, key: KeyPath, stage: Stage) -> Iterator[Problem]:
    row, table = stage.row_length, stage.chunk_length_by_key
    at = (*key, "chunk_length")
    if table is None:
        by_length = isinstance(stage.chunk_length, dict)
        yield from _dividing(at, row, stage.lengths_of(""), by_length)
        return
    for mix_key in stage.mix:
        if mix_key not in table:
            reason = f"says nothing of {mix_key}, which is in the mix"
            yield Problem(dotted(at), reason, f"Add {dotted((mix_key,))} = {row}.")
    for mix_key, lengths in table.items():
        if mix_key not in stage.mix:
            told = "Leave it out, or add it to the mix."
            yield Problem(dotted((*at, mix_key)), "is not in the mix", told, lengths)
        else:
            yield from _dividing((*at, mix_key), row, stage.lengths_of(mix_key), isinstance(lengths, dict))


def _dividing(at: KeyPath, row: int, lengths: Iterable[int], by_length: bool) -> Iterator[Problem]:
    for length in lengths:
        if row % length:
            reason = f"does not divide the longest chunk, {row}, and rows are cut evenly"
            key = dotted((*at, str(length))) if by_length else dotted(at)
            yield Problem(key, reason, f"Use a divisor of {row}.", None if by_length else length)


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
