"""`fox find-lr`: short runs from the same weights over the same data, each to a peak learning rate of its own, and all of the way down.

A loss beside a rate that is still high says little: the decay that follows is what makes a high rate pay. So every trial warms up,
holds and decays over its own few tokens, and the mean loss of its last tenth is compared. A rate that lies above one that diverged
is not recommended, nor is one that taught nothing. The trials are runs of the real loop in RUN/find-lr, with its checkpoints: a
stopped search goes on, and one that is asked for again is only read.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from fox.artifacts import disk_failures, locked, sha256_of_json, write_atomically, write_json
from fox.errors import UserError
from fox.progress import Meter, meter
from fox.recipe import LoadedRecipe, Recipe
from fox.runs.before_training import check_undamaged, shards_of, sources_of
from fox.runs.data_steps import open_shards
from fox.runs.folder import Run, flat
from fox.runs.pipeline import do_steps
from fox.runs.steps import pretrain_inputs
from fox.tokenizer import Tokenizer
from fox.train.trouble import Diverged

if TYPE_CHECKING:
    from fox.model import Transformer

FACTOR = 2.0
"""Between neighbouring rates."""
MOST_EXTRA = 2
"""Further rates that are tried where the best lies at an end."""
_DIVERGED_NATS = 1.0
"""A trial is given up where its loss stands so far above the lowest that it has had."""
_LEARNT_NATS = 0.2
"""By how much a trial that has learnt anything ends lower, at least."""
_FEWEST_STEPS = 50
_FEWEST_LAST = 3
_DONE = "result.json"


@dataclass(frozen=True)
class Trial:
    """What came of one rate. `loss` is in nats a token; None where it diverged."""

    rate: float
    loss: float | None
    steps: int
    first_loss: float
    curve: tuple[float, ...]


def find_rate(loaded: LoadedRecipe, folder: Path, num_rates: int, tokens: int | None, console: Console) -> list[Trial]:
    """Try rates around the recipe's, draw them in RUN/find-lr, and give the trials in the order of their rates."""
    _short_recipe(loaded.recipe, tokens)  # raises where it can't be done
    run = do_steps(loaded, folder, ["tokenizer", "data"], None, console)
    recipe, short = run.recipe, _short_recipe(run.recipe, tokens)
    with locked(folder), disk_failures(folder):
        check_undamaged(run, {"data": shards_of(run, sources_of(recipe, short.stage), "train")}, console)
        centre = recipe.optimizer.peak_learning_rate
        rates = [_three_figures(centre * FACTOR ** (n - num_rates // 2)) for n in range(num_rates)]
        first_model = _first_model(run)
        trials = [_trial(run, short, rate, first_model, console) for rate in rates]
        for _ in range(MOST_EXTRA):
            best = best_of(recipe, trials)
            if best is None or best.rate not in (trials[0].rate, trials[-1].rate):
                break
            beyond = best.rate / FACTOR if best.rate == trials[0].rate else best.rate * FACTOR
            further = _trial(run, short, _three_figures(beyond), first_model, console)
            trials = sorted([*trials, further], key=lambda one: one.rate)
        write_json(folder / "find-lr" / "results.json", [asdict(trial) for trial in trials])
        write_atomically(folder / "find-lr" / "find-lr.png", _picture(trials))
    return trials


def best_of(recipe: Recipe, trials: list[Trial]) -> Trial | None:
    """The trial with the lowest loss of those that nothing speaks against (`why_not`); None where there is none."""
    sound = [trial for trial in trials if not why_not(recipe, trials, trial)]
    return min(sound, key=lambda trial: trial.loss or math.inf, default=None)


def why_not(recipe: Recipe, trials: list[Trial], trial: Trial) -> str:
    """What speaks against a rate, however low its loss beside the others'; empty where nothing does."""
    if trial.loss is None:
        return f"diverged after {trial.steps} steps"
    if not _has_learnt(recipe, trial):
        return "diverged, and learns nothing any more" if _diverged(recipe, trial) else "has learnt nothing"
    if any(_diverged(recipe, other) and other.rate < trial.rate for other in trials):
        return "lies above a rate that diverged"
    return ""


def what_to_try(recipe: Recipe, trials: list[Trial]) -> str:
    """Where there is no best: lower rates where one diverged, or the lowest did better than the highest."""
    first, last = trials[0], trials[-1]
    is_lower = first.loss is not None and last.loss is not None and first.loss < last.loss
    if is_lower or any(_diverged(recipe, trial) for trial in trials):
        other = f"lower ones: -o optimizer.peak_learning_rate={first.rate / 16:.3g}"
    else:
        other = f"higher ones, -o optimizer.peak_learning_rate={last.rate * 16:.3g}, or more --tokens"
    return f"None of these rates can be recommended. Try {other}"


def _has_learnt(recipe: Recipe, trial: Trial) -> bool:
    """Whether a trial ends well below a guess among all tokens, and below where it began: weights that were blown apart end at the
    guess. A model that was trained before begins far below it, and must not have lost what it knew."""
    assert trial.loss is not None
    began = trial.first_loss + (_LEARNT_NATS if recipe.model.start_from is not None else -_LEARNT_NATS)
    return trial.loss <= min(began, math.log(recipe.tokenizer.vocab_size) - _LEARNT_NATS)


def _diverged(recipe: Recipe, trial: Trial) -> bool:
    """Whether a trial was given up, or blew up and never came back."""
    if trial.loss is None:
        return True
    return not _has_learnt(recipe, trial) and max(trial.curve) > trial.first_loss + _DIVERGED_NATS


def describe_trials(recipe: Recipe, trials: list[Trial], folder: Path) -> str:
    """A table with a bar for each rate that can be recommended, and what to do with the best."""
    best = best_of(recipe, trials)
    against = [why_not(recipe, trials, trial) for trial in trials]
    losses = [trial.loss for trial, why in zip(trials, against, strict=True) if trial.loss is not None and not why]
    lines = [f"{'rate':>9}  {'loss':>7}  longer is better", ""]
    for trial, why in zip(trials, against, strict=True):
        if trial.loss is None:
            lines.append(f"{trial.rate:>9.3g}  {why}")
        elif why:
            lines.append(f"{trial.rate:>9.3g}  {trial.loss:>7.3f}  {why}")
        else:
            span = max(losses) - min(losses) or 1.0
            bar = "█" * (1 + round(24 * (max(losses) - trial.loss) / span))
            lines.append(f"{trial.rate:>9.3g}  {trial.loss:>7.3f}  {bar}{'  best' if trial is best else ''}")
    lines.append("")
    if best is not None:
        lines.append(
            f"-o optimizer.peak_learning_rate={best.rate:.3g}   (the recipe has {recipe.optimizer.peak_learning_rate:g})"
        )
        if best.rate in (trials[0].rate, trials[-1].rate):
            lines.append("It is the last that was tried at this end, so a better one may lie beyond it.")
        lines.append(f"Found on {best.steps} steps; a longer run bears the same or a somewhat lower rate.")
    lines.append(f"The curves: {folder / 'find-lr' / 'find-lr.png'}")
    return "\n".join(lines)


def _short_recipe(recipe: Recipe, tokens: int | None) -> Recipe:
    """The recipe's first stage alone, cut to so many tokens, with a schedule of its own."""
    name, stage = next(iter(recipe.stage.items()))
    wanted = tokens or max(_FEWEST_STEPS * stage.batch_tokens, recipe_tokens(recipe) // 50)
    steps = round(min(wanted, stage.tokens) / stage.batch_tokens)
    if steps < _FEWEST_STEPS // 5:
        raise UserError(
            "--tokens" if tokens else f"stage.{name}.tokens",
            wanted,
            problem=f"are {steps} steps of {stage.batch_tokens:,} tokens, too few to tell rates apart",
            mend=f"Give --tokens {_FEWEST_STEPS * stage.batch_tokens} or more, or a longer first stage.",
        )
    page = recipe.model_dump()
    cut = steps * stage.batch_tokens
    page["stage"] = {name: {**page["stage"][name], "tokens": cut, "batch_ramp": None}}
    page["schedule"] = {"warmup_tokens": cut // 10, "decay_tokens": cut // 3, "decay_shape": "linear"}
    # A rate at which training would have to roll back has diverged.
    page["train"] |= {"average_checkpoints": 0, "keep_checkpoints": 1, "roll_backs": 0}
    page["tune"] = None
    return Recipe.model_validate(page)


def recipe_tokens(recipe: Recipe) -> int:
    """Of pre-training."""
    return sum(stage.tokens for stage in recipe.stage.values())


def _first_model(run: Run) -> Callable[[], Transformer]:
    """What the run begins with, made for each trial: the model that its recipe starts from, or a new one."""
    from fox.runs.start import open_start, trainable
    from fox.train.stages import new_model

    if run.recipe.model.start_from is not None:
        start = open_start(run)
        return lambda: trainable(start)
    vocab_size = Tokenizer.load(run.folder / "tokenizer").vocab_size
    return lambda: new_model(run.recipe, vocab_size)


def _trial(run: Run, short: Recipe, rate: float, first_model: Callable[[], Transformer], console: Console) -> Trial:
    """What comes of one rate; read where it was tried before with the same recipe and data."""
    from fox.train.stages import pretrain

    page = short.model_dump()
    page["optimizer"]["peak_learning_rate"] = rate
    recipe = Recipe.model_validate(page)
    inputs = pretrain_inputs(Run(run.folder, LoadedRecipe(recipe, {})))
    folder = run.folder / "find-lr" / f"rate-{rate:g}-{sha256_of_json(inputs)[:12]}"
    known = _read(folder / _DONE)
    if known:
        return known
    tokenizer = Tokenizer.load(run.folder / "tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    total = recipe_tokens(recipe)
    diverged = False
    with meter(f"rate {rate:g}", total, "tokens", console=console) as shown:
        watch = _Watch(shown, folder / "metrics.jsonl")
        try:
            pretrain(
                recipe,
                first_model(),
                open_shards(run, "train", tokenizer.vocab_size),
                folder,
                flat(inputs),
                watch,
                lambda *_: None,
            )
        except Diverged:
            diverged = True
    losses = _losses(folder / "metrics.jsonl")
    tail = losses[-max(_FEWEST_LAST, len(losses) // 10) :]
    loss = None if diverged or not losses or not all(map(math.isfinite, tail)) else sum(tail) / len(tail)
    first = losses[0] if losses else math.nan
    curve = tuple(round(one, 4) if math.isfinite(one) else 99.0 for one in losses)
    trial = Trial(rate, loss, len(losses), first, curve)
    write_json(folder / _DONE, asdict(trial))
    for made in ("checkpoints", "packing"):
        shutil.rmtree(folder / made, ignore_errors=True)
    return trial


class _Watch(Meter):
    """Shows how far a trial is, and ends one that has diverged."""

    def __init__(self, shown: Meter, metrics: Path) -> None:
        super().__init__(shown.label, shown.total, shown.unit)
        self._shown, self._metrics = shown, metrics

    def advance_to(self, done: int, note: str = "") -> None:
        self._shown.advance_to(done, note)
        losses = _losses(self._metrics)
        last = losses[-3:]
        if any(not math.isfinite(loss) for loss in last) or min(last) > min(losses) + _DIVERGED_NATS:
            raise Diverged(f"{self.label}: the loss has left all that it was")


def _losses(metrics: Path) -> list[float]:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row["loss"] if isinstance(row.get("loss"), int | float) else math.nan for row in rows]


def _read(path: Path) -> Trial | None:
    try:
        page: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Trial(**{**page, "curve": tuple(page["curve"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _picture(trials: list[Trial]) -> bytes:
    """Loss by rate, and each trial's curve, as a PNG."""
    from matplotlib.figure import Figure

    from fox.report.style import BASELINE, MODEL, SOURCES, chart_style, png

    with chart_style(9):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        top = max((trial.first_loss for trial in trials if math.isfinite(trial.first_loss)), default=1.0)
        done = [(trial.rate, min(trial.loss, top)) for trial in trials if trial.loss is not None]
        left.plot([rate for rate, _ in done], [loss for _, loss in done], color=MODEL, marker="o")
        left.set_xscale("log")
        left.set_title("Loss at the end, nats a token", loc="left")
        left.set_xlabel("peak learning rate")
        for number, trial in enumerate(trials):
            colour = SOURCES[number] if number < len(SOURCES) else BASELINE
            curve = [min(loss, top) for loss in trial.curve]
            right.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=1, label=f"{trial.rate:.3g}")
        right.set_title("Loss by step", loc="left")
        right.legend(frameon=False)
        return png(figure)


def _three_figures(number: float) -> float:
    return float(f"{number:.2e}")
