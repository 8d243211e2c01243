"""Which model a time buys: its size, tokens, batch and learning rate, by published fits and this machine's own speed.

Size against tokens: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., arXiv 2203.15556, equation 2), with the
constants of Besiroglu et al. (arXiv 2404.10102), who found the paper's own not to fit its data. N counts all parameters. Of
text that is read again, D counts what it is worth (Muennighoff et al., arXiv 2305.16264, equation 5). Instead of setting
6 N D equal to a sum of FLOPs, every size is given the tokens that this machine can train it on in the time, and the lowest L wins.

Learning rate and batch: Step Law (Li et al., arXiv 2503.04715, equation 1); beside it DeepSeek LLM's (arXiv 2401.02954, section 3.1).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fox.errors import RecipeError, UserError
from fox.plan.family import family, shape
from fox.plan.room import Room
from fox.plan.size import attention_flops_per_position, count_parameters, matrix_flops, mean_chunk_length
from fox.recipe.contradictions import contradictions
from fox.recipe.keys import KeyPath
from fox.recipe.schema import Model, Recipe, Schedule
from fox.recipe.stage import Stage

_E, _A, _B, _ALPHA, _BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
CHINCHILLA_PARAMETERS = (44e6, 16e9)
STEP_LAW_PARAMETERS, STEP_LAW_TOKENS = (60e6, 1e9), (2e9, 100e9)
"""Of the models that the fits were made on."""

_WORTH_OF_REPEATS = 15.39
"""R*_D of arXiv 2305.16264: further epochs of the same text are worth less and less, and together at most so many new ones."""

USED_FRACTION = 0.9
"""Of the budget; the rest is for tokenizing, scoring, saving and replies."""

FEWEST_STEPS = 100
"""Fewer steps of pre-training teach nothing, whatever a formula says."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

SpeedOf = Callable[[Recipe], Mapping[str, float]]
"""Tokens a second in each stage of a recipe, by the stage's key."""


@dataclass(frozen=True)
class Proposal:
    """A recipe for a time, and why. `changed` are the keys in which it differs from its base, with their values."""

    recipe: Recipe
    changed: dict[KeyPath, Any]
    seconds: float
    """Of training and tuning, at the measured speed."""
    parameters: int
    tokens: int
    worth_tokens: float
    """What these are worth, where text is read more than once."""
    expected_loss: float
    batch_tokens: int
    learning_rate: float
    fitted_learning_rates: tuple[float, float]
    """By Step Law and by DeepSeek's fit."""
    flops: float
    alternatives: tuple[tuple[int, int, float], ...]
    """Other sizes for the same time: parameters, tokens, expected loss."""
    notes: tuple[str, ...]


def seconds_of(budget: str) -> float:
    """`8h`, `90m`, `1.5d` as seconds. Raises UserError where it is no time."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", budget.lower())
    mend = "Give a number and a unit: 90m, 8h, 2d."
    if not found:
        raise UserError("--budget", budget, problem="is no time", mend=mend)
    number, unit = float(found[1]), found[2]
    if unit not in _UNITS:
        raise UserError(
            "--budget", budget, problem="has no unit" if not unit else f"has an unknown unit {unit}", mend=mend
        )
    if number * _UNITS[unit] <= 0:
        raise UserError("--budget", budget, problem="is no time at all", mend=mend)
    return number * _UNITS[unit]


def expected_loss(parameters: float, tokens: float) -> float:
    """Nats a token of the fit's own text and tokenizer: for comparing sizes, not to be met by another text."""
    return _E + _A / parameters**_ALPHA + _B / tokens**_BETA


def worth_of(tokens: float, unique_tokens: float | None) -> float:
    """How many new tokens are worth as much as `tokens`, drawn again and again from `unique_tokens`."""
    if not unique_tokens or tokens <= unique_tokens:
        return tokens
    repeats = tokens / unique_tokens - 1
    return unique_tokens * (1 + _WORTH_OF_REPEATS * (1 - math.exp(-repeats / _WORTH_OF_REPEATS)))


def step_law_learning_rate(parameters_without_embedding: float, tokens: float) -> float:
    return 1.79 * parameters_without_embedding**-0.713 * tokens**0.307


def step_law_batch_tokens(tokens: float) -> float:
    return 0.58 * tokens**0.571


def deepseek_learning_rate(flops: float) -> float:
    return 0.3118 * flops**-0.1250


def propose(
    base: Recipe,
    seconds: float,
    speed_of: SpeedOf,
    train_tokens: Mapping[str, int] | None,
    room: Room | None = None,
) -> Proposal:
    """The best recipe of `base`'s family (its proportions, vocabulary, curriculum and mixture) for so many seconds.

    `speed_of` is asked about few candidates, and tells of the others by their FLOPs. `train_tokens` are those of each source,
    where they are known. Of sizes that `room` is too small for, none is proposed, and a pass has no more rows than fit; None:
    it is not known. A recipe that starts from a model keeps its size and its learning rate. Raises UserError where the time
    is too short for the smallest model, or the memory too small for it; RecipeError where values that are taken over contradict
    those that are proposed.
    """
    unique = None if train_tokens is None else float(sum(train_tokens[name] for name in _pretraining_sources(base)))
    sizes = family(base.model) if base.model.start_from is None else [base.model]  # which has its size
    fitting = room.fitting(base, sizes) if room else sizes

    def with_model(model: Model) -> Recipe:
        return room.with_model(base, model) if room else base.model_copy(update={"model": model})

    rate = _total_rate(base, speed_of(with_model(base.model)))
    asked: dict[int, float] = {} if base.model.start_from is None else {base.model.hidden_size: rate}
    at = base.model
    for _ in range(4):
        rates = {size.hidden_size: rate * _flops(base, at) / _flops(base, size) for size in sizes} | asked
        told = {
            size.hidden_size: _loss_of(base, size, USED_FRACTION * seconds * rates[size.hidden_size], unique)
            for size in sizes
        }
        best = min(fitting, key=lambda size: told[size.hidden_size])
        if best.hidden_size in asked:
            break
        at, rate = best, _total_rate(base, speed_of(with_model(best)))
        asked[best.hidden_size] = rate
    tokens = USED_FRACTION * seconds * asked[best.hidden_size]
    scale = tokens / _all_tokens(base)
    wished = min(sizes, key=lambda size: told[size.hidden_size])
    notes = [] if room is None or wished in fitting else [room.too_little_for(base, wished)]
    return _made(base, with_model(best), scale, unique, rates, fitting, train_tokens, seconds, notes)


def _made(
    base: Recipe,
    sized: Recipe,
    scale: float,
    unique: float | None,
    rates: Mapping[int, float],
    sizes: list[Model],
    train_tokens: Mapping[str, int] | None,
    seconds: float,
    notes: list[str],
) -> Proposal:
    """The proposal of `sized`, which is the base with another model and as many rows as fit, for `scale` times its tokens."""
    model = sized.model
    pretrained = scale * sum(stage.tokens for stage in base.stage.values())
    count = count_parameters(model, base.tokenizer.vocab_size)
    batch = step_law_batch_tokens(pretrained)
    if pretrained < FEWEST_STEPS * min(stage.row_length for stage in base.stage.values()):
        least = seconds * FEWEST_STEPS * max(stage.row_length for stage in base.stage.values()) / pretrained
        raise UserError(
            "--budget",
            f"{seconds:g}s",
            problem=f"is too short: {'even the smallest' if len(sizes) > 1 else 'the'} model would see {pretrained:,.0f} tokens, in fewer than {FEWEST_STEPS} steps",
            mend=f"Give --budget {math.ceil(least / 60)}m or more, or a recipe with shorter chunks or a smaller vocabulary.",
        )
    batch = min(batch, pretrained / FEWEST_STEPS)
    flops = pretrained * _flops(base, model)
    by_step_law = step_law_learning_rate(count.without_embedding_and_head, pretrained)
    # Outside of Step Law's models its power of N runs off upwards; DeepSeek's fit, of FLOPs alone, is flat, and then the bound.
    is_inside = _is_inside_step_law(count.without_embedding_and_head, pretrained)
    learning_rate = _two_figures(by_step_law if is_inside else min(by_step_law, deepseek_learning_rate(flops)))
    changed: dict[KeyPath, Any] = {("model", key): value for key, value in shape(model).items()}
    mean_batch = pretrained / scale / sum(stage.tokens / stage.batch_tokens for stage in base.stage.values())
    stages: dict[KeyPath, Stage] = {("stage", name): stage for name, stage in sized.stage.items()}
    if sized.tune:
        stages[("tune",)] = sized.tune
    for key, stage in stages.items():
        wanted = stage.batch_tokens * batch / mean_batch
        if base.train.precision == "bf16-weights":  # which takes steps of one pass
            wanted = min(wanted, stage.rows * stage.row_length)
        rows, batch_tokens = _rows_and_batch(stage, wanted)
        changed |= {(*key, "tokens"): _whole_steps(stage.tokens * scale, batch_tokens)}
        changed |= {(*key, "rows"): rows, (*key, "batch_tokens"): batch_tokens}
        ramp = _ramp(stage, scale, rows * stage.row_length, batch_tokens)
        changed |= {(*key, "batch_ramp", name): value for name, value in ramp.items()}
    if base.model.start_from is not None:
        learning_rate = base.optimizer.peak_learning_rate
        notes.append(
            "The fits are for training from nothing. This recipe starts from a model: its size stays, the learning rate is "
            "left as it was, and the expected loss says nothing of it. `fox find-lr` with the recipe tells more of the rate."
        )
    elif base.optimizer.name == "adamw":
        ratio = learning_rate / base.optimizer.peak_learning_rate
        changed[("optimizer", "peak_learning_rate")] = learning_rate
        if base.tune and base.tune.optimizer.name == "adamw":
            changed[("tune", "optimizer", "peak_learning_rate")] = _two_figures(
                base.tune.optimizer.peak_learning_rate * ratio
            )
    else:
        learning_rate = base.optimizer.peak_learning_rate
        notes.append(f"The fits are for AdamW: the learning rate of {base.optimizer.name} is left as it was.")
    schedules: list[tuple[KeyPath, Schedule, list[KeyPath]]] = [
        (("schedule",), base.schedule, [key for key in stages if key != ("tune",)])
    ]
    if base.tune:
        schedules.append((("tune", "schedule"), base.tune.schedule, [("tune",)]))
    for key, schedule, of_stages in schedules:
        whole = sum(changed[(*stage_key, "tokens")] for stage_key in of_stages)
        warmup = min(whole, int(schedule.warmup_tokens * scale))
        changed[(*key, "warmup_tokens")] = warmup
        changed[(*key, "decay_tokens")] = min(whole - warmup, int(schedule.decay_tokens * scale))
    notes += _notes(base, count.total, count.without_embedding_and_head, pretrained, train_tokens, scale)
    parts = [size for size in sizes if size.hidden_size != model.hidden_size]
    others = sorted(parts, key=lambda size: abs(math.log(size.hidden_size / model.hidden_size)))[:2]
    worth = worth_of(pretrained, unique)

    def beside(size: Model) -> tuple[int, int, float]:
        all_tokens = USED_FRACTION * seconds * rates[size.hidden_size]
        parameters = count_parameters(size, base.tokenizer.vocab_size).total
        return parameters, int(pretrained_share(base) * all_tokens), _loss_of(base, size, all_tokens, unique)

    recipe = with_values(base, changed)
    if found := list(contradictions(recipe)):
        raise RecipeError([dataclasses.replace(problem, place="as proposed:") for problem in found])
    return Proposal(
        recipe=recipe,
        changed={key: value for key, value in changed.items() if _value_at(base, key) != value},
        seconds=USED_FRACTION * seconds,
        parameters=count.total,
        tokens=int(pretrained),
        worth_tokens=worth,
        expected_loss=expected_loss(count.total, worth),
        batch_tokens=round(batch),
        learning_rate=learning_rate,
        fitted_learning_rates=(_two_figures(by_step_law), _two_figures(deepseek_learning_rate(flops))),
        flops=flops,
        alternatives=tuple(sorted(beside(size) for size in others)),
        notes=tuple(notes),
    )


def with_values(recipe: Recipe, values: Mapping[KeyPath, Any]) -> Recipe:
    """`recipe` with other values at some keys, checked like any recipe."""
    page = recipe.model_dump()
    for key, value in values.items():
        table: Any = page
        for part in key[:-1]:
            table = table[part]
        table[key[-1]] = value
    return Recipe.model_validate(page)


def pretrained_share(recipe: Recipe) -> float:
    """Of all tokens, those of pre-training."""
    return sum(stage.tokens for stage in recipe.stage.values()) / _all_tokens(recipe)


def _loss_of(base: Recipe, model: Model, all_tokens: float, unique: float | None) -> float:
    parameters = count_parameters(model, base.tokenizer.vocab_size).total
    return expected_loss(parameters, worth_of(max(1.0, pretrained_share(base) * all_tokens), unique))


def _flops(base: Recipe, model: Model) -> float:
    """Of a token, forward and backward, over the curriculum."""
    matrices = matrix_flops(count_parameters(model, base.tokenizer.vocab_size).without_lookup)
    tokens = sum(stage.tokens for stage in base.stage.values())
    chunk = sum(stage.tokens * mean_chunk_length(stage) for stage in base.stage.values()) / tokens
    return matrices + attention_flops_per_position(model) * chunk


def _all_tokens(recipe: Recipe) -> float:
    return sum(stage.tokens for stage in recipe.stage.values()) + (recipe.tune.tokens if recipe.tune else 0)


def _total_rate(recipe: Recipe, rates: Mapping[str, float]) -> float:
    """Tokens a second over all stages and the tuning. A stage that was too large to be timed counts as the slowest."""
    if not rates:
        raise UserError(
            "--budget",
            problem="needs this machine's speed, and the recipe's model is too large to be timed here",
            mend="Begin with a smaller recipe, such as recipes/small-cpu.toml.",
        )
    slowest = min(rates.values())
    seconds = sum(stage.tokens / rates.get(f"stage.{name}", slowest) for name, stage in recipe.stage.items())
    if recipe.tune:
        seconds += recipe.tune.tokens / rates.get("tune", slowest)
    return _all_tokens(recipe) / seconds


def _rows_and_batch(stage: Stage, wanted: float) -> tuple[int, int]:
    """Rows of a pass, at most as many as the base has, and the tokens of a whole number of such passes near `wanted`; at
    least two, where a step grows from fewer."""
    fewest = 2 if stage.batch_ramp else 1
    all_rows = max(1, round(wanted / stage.row_length))
    rows = min(stage.rows, max(1, all_rows // fewest))
    return rows, max(fewest, round(all_rows / rows)) * rows * stage.row_length


def _ramp(stage: Stage, scale: float, pass_tokens: int, batch_tokens: int) -> dict[str, int]:
    """The base's ramp from the same share of a step, over the same share of the stage."""
    if stage.batch_ramp is None:
        return {}
    passes = round(stage.batch_ramp.start / stage.batch_tokens * batch_tokens / pass_tokens)
    start = min(max(1, passes) * pass_tokens, batch_tokens - pass_tokens)
    return {"start": start, "tokens": max(1, int(stage.batch_ramp.tokens * scale))}


def _whole_steps(tokens: float, batch_tokens: int) -> int:
    return max(1, round(tokens / batch_tokens)) * batch_tokens


def _notes(
    base: Recipe,
    parameters: int,
    without_embedding: int,
    tokens: float,
    train_tokens: Mapping[str, int] | None,
    scale: float,
) -> list[str]:
    notes = []
    low, high = CHINCHILLA_PARAMETERS
    if not low <= parameters <= high:
        notes.append(
            f"The fit of size against tokens is from models of {low / 1e6:.0f} M to {high / 1e9:.0f} B parameters; this is outside."
        )
    (low, high), (few, many) = STEP_LAW_PARAMETERS, STEP_LAW_TOKENS
    if not _is_inside_step_law(without_embedding, tokens):
        notes.append(
            f"Step Law is from models of {low / 1e6:.0f} M to {high / 1e9:.0f} B parameters on {few / 1e9:.0f} B to {many / 1e9:.0f} B "
            "tokens; this is outside, and the lower of the two rates is taken. `fox find-lr` with the recipe tells more."
        )
    if train_tokens is None:
        notes.append(
            "The data are not made yet, so it is not known how often they would be read. `fox data` with the recipe tells."
        )
        return notes
    taken = dict.fromkeys(train_tokens, 0.0)
    for stage in base.stage.values():
        weight_of_all = sum(stage.mix.values())
        for key, weight in stage.mix.items():
            sources = base.sources_of(key, stage.mix)
            there = sum(train_tokens[name] for name in sources) or 1
            for name in sources:
                taken[name] += scale * stage.tokens * weight / weight_of_all * train_tokens[name] / there
    for name, count in taken.items():
        epochs = count / max(1, train_tokens[name])
        if epochs > base.train.max_epochs:
            notes.append(
                f"{name} has {train_tokens[name]:,} tokens and would be read {epochs:.1f} times; train.max_epochs is "
                f"{base.train.max_epochs:g}. Add text, give it less weight, or take a shorter time."
            )
    return notes


def _is_inside_step_law(without_embedding: float, tokens: float) -> bool:
    (low, high), (few, many) = STEP_LAW_PARAMETERS, STEP_LAW_TOKENS
    return low <= without_embedding <= high and few <= tokens <= many


def _pretraining_sources(recipe: Recipe) -> set[str]:
    return {name for stage in recipe.stage.values() for key in stage.mix for name in recipe.sources_of(key, stage.mix)}


def _value_at(recipe: Recipe, key: KeyPath) -> Any:
    value: Any = recipe.model_dump()
    for part in key:
        value = value[part]
    return value


def _two_figures(number: float) -> float:
    return float(f"{number:.1e}")


def as_dict(proposal: Proposal) -> dict[str, Any]:
    """For `json.dumps`: the same, with keys as they are written after -o."""
    from fox.recipe.keys import dotted

    page = {field.name: getattr(proposal, field.name) for field in dataclasses.fields(proposal)}
    page["recipe"] = proposal.recipe.model_dump()
    return page | {"changed": {dotted(key): value for key, value in proposal.changed.items()}}
