"""What a recipe takes on this machine: each stage's step timed in small (fox/train/speed.py), for `fox plan`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fox.artifacts import write_atomically
from fox.errors import UserError
from fox.memory import machine_bytes
from fox.plan import Measured, describe, plan
from fox.plan.budget import as_dict, propose, seconds_of
from fox.plan.describe_budget import describe_proposal
from fox.plan.gpus import find_gpu
from fox.plan.memory import usable_bytes
from fox.plan.room import Room
from fox.plan.rows import fitted_rows
from fox.plan.starter import starter_recipe
from fox.recipe import LoadedRecipe, Recipe
from fox.recipe.stage import Stage
from fox.recipe.write import toml_page
from fox.report.run_files import Facts, Manifest
from fox.runs.rows import attention_keeps_weights, fit_rows, stages_of

if TYPE_CHECKING:
    from fox.train.speed import Shape, StepCost

HOW = ("auto", "quick", "compiled", "no")
LIMIT_S = 8.0
"""How long all stages together are timed where blocks are not compiled, about."""
COMPILED_PASS_S = 3.0
"""By `auto`, a stage is not compiled for its timing where one pass through a block and the head takes so long, at the least."""
_NOT_COMPILED = (
    "Speeds are those of blocks that are not compiled, which takes seconds; training compiles them, and may be done sooner. "
    "--measure compiled times it so, in minutes."
)


@dataclass(frozen=True)
class Wish:
    """What `fox plan` was asked on its command line."""

    gpus: int = 1
    gpu: str | None = None
    mfu: float | None = None
    tokens_per_second: float | None = None
    measure: str = "auto"

    def measures(self) -> bool:
        """Whether this machine is to be timed. Raises UserError where HOW is none."""
        if self.measure not in HOW:
            raise UserError(
                "--measure", self.measure, problem="is no way to measure", mend=f"One of: {', '.join(HOW)}."
            )
        other = self.gpu is not None or self.tokens_per_second is not None or self.mfu is not None or self.gpus != 1
        return not other and self.measure != "no" and find_spec("torch") is not None


def with_rows_of(loaded: LoadedRecipe, wish: Wish, console: Console) -> LoadedRecipe:
    """The recipe with the rows that would be taken where it leaves them open: by this machine, or the kind of GPU that is asked for."""
    if not loaded.auto_rows:
        return loaded
    if wish.gpu is None and find_spec("torch") is not None:
        fitted = fit_rows(loaded, Path("runs") / loaded.recipe.name)
        where = "this machine, by its free memory"
    else:
        kind = find_gpu(wish.gpu) if wish.gpu else None
        free = usable_bytes(kind) if kind else None
        vocab_size = loaded.recipe.tokenizer.vocab_size
        rows = {
            key: fitted_rows(loaded.recipe, stage, vocab_size, free, True, None if kind else os.cpu_count(), wish.gpus)
            for key, stage in stages_of(loaded.recipe).items()
            if key in loaded.auto_rows
        }
        fitted = loaded.with_rows(rows)
        where = kind.name if kind else "a processor with enough memory"
    told = ", ".join(f"{key}.rows = {rows}" for key, rows in fitted.fitted_rows.items())
    console.print(f"note: {told} on {where}.", highlight=False, soft_wrap=True)
    return fitted


def plan_recipe(recipe: Recipe, wish: Wish, as_json: bool, console: Console) -> str:
    """The plan of a recipe as a page or as JSON; of this machine where no other is asked for, and torch is there."""
    measured = measure_here(recipe, Path("runs") / recipe.name, wish.measure, console) if wish.measures() else None
    bf16 = keeps_weights = True
    if wish.measures():
        from fox.train.machine import resolve_precision

        bf16, keeps_weights = resolve_precision("auto") == "bf16", attention_keeps_weights(recipe)
    made = plan(recipe, wish.gpus, wish.gpu, wish.mfu, wish.tokens_per_second, measured, bf16, keeps_weights)
    return json.dumps(made.as_dict(), indent=2) if as_json else describe(made)


def propose_for(
    loaded: LoadedRecipe | None, budget: str, wish: Wish, write: Path | None, as_json: bool, console: Console
) -> str:
    """What a time buys on this machine, as a page or as JSON; written as a recipe to `write`, too, where that is given."""
    seconds = seconds_of(budget)
    if write is not None and write.exists():
        raise UserError(
            "--write", str(write), problem="is there already", mend="Name a new file; nothing is overwritten."
        )
    base = loaded.recipe if loaded else starter_recipe()
    given = wish.tokens_per_second
    if given is None and not wish.measures():
        raise UserError(
            "--budget",
            budget,
            problem="needs this machine's speed, which is not measured here",
            mend="Leave --gpu, --gpus, --mfu and --measure no away, or give --tokens-per-second of the recipe as it is.",
        )
    folder = Path("runs") / base.name
    timed: dict[str, dict[str, Measured]] = {}
    gains: dict[str, float] = {}

    def speed_of(recipe: Recipe) -> dict[str, float]:
        name = recipe.model_dump_json()
        if name not in timed:
            how = "quick" if wish.measure == "auto" else wish.measure  # sizes are many, and each compiles anew
            timed[name] = measure_here(recipe, folder, how, console, limit_s=LIMIT_S / 2)
        return {key: found.tokens_per_second * gains.get(key, 1.0) for key, found in timed[name].items()}

    def speed_as_given(recipe: Recipe) -> dict[str, float]:
        """In proportion to the FLOPs: of the base it is known, of other sizes it is taken to be as efficient."""
        flops = {
            key: sum(s.flops for s in plan(r).stages) / plan(r).tokens for key, r in (("base", base), ("this", recipe))
        }
        return {stage.key: (given or 0.0) * flops["base"] / flops["this"] for stage in plan(recipe).stages}

    train_tokens, room = _train_tokens(base, folder), _room(base, wish)
    made = propose(base, seconds, speed_as_given if given else speed_of, train_tokens, room)
    measured = [found for of_size in timed.values() for found in of_size.values()]
    if not given and wish.measure == "auto" and base.train.compile:
        # As training will run it: the size that was chosen. The others are taken to gain as much by being compiled.
        model = made.recipe.model
        chosen = room.with_model(base, model) if room else base.model_copy(update={"model": model})
        before, compiled = speed_of(chosen), measure_here(chosen, folder, "auto", console)
        gains |= {key: found.tokens_per_second / before[key] for key, found in compiled.items() if key in before}
        made = propose(base, seconds, speed_of, train_tokens, room)
        measured = list(compiled.values())
    if any(not found.compiled for found in measured):
        made = replace(made, notes=(*made.notes, _NOT_COMPILED))
    if write is not None:
        page = made.recipe.model_copy(update={"name": write.stem})
        write_atomically(write, f"# Proposed by fox plan --budget {budget}.\n{toml_page(page.model_dump())}")
        console.print(f"wrote {write}", highlight=False)
        if loaded is None:
            console.print(
                "Its text is read from the folder text: change source.text-files.path to yours.", highlight=False
            )
    return json.dumps(as_dict(made), indent=2) if as_json else describe_proposal(made, budget, loaded is not None)


def _room(recipe: Recipe, wish: Wish) -> Room | None:
    """The memory that is free for a training of `recipe`; None where that is not known."""
    if wish.gpu is not None:
        return Room(usable_bytes(find_gpu(wish.gpu)), keeps_weights=False, devices=wish.gpus)
    if wish.gpus != 1 or find_spec("torch") is None:
        return None
    from fox.train.machine import device, free_memory_bytes, resolve_precision

    free = free_memory_bytes()
    if free is None or device().type != "cpu":
        return None
    return Room(free, resolve_precision("auto") == "bf16", attention_keeps_weights(recipe))


def _train_tokens(recipe: Recipe, folder: Path) -> dict[str, int] | None:
    """The tokens of each source's training text; None where one is not known."""
    facts = data_facts(folder).sources
    found = {name: facts[name].train.tokens for name in recipe.source if name in facts}
    known = {name: tokens for name, tokens in found.items() if tokens is not None}
    return known if len(known) == len(recipe.source) else None


def measure_here(
    recipe: Recipe, folder: Path, how: str, console: Console, limit_s: float = LIMIT_S
) -> dict[str, Measured]:
    """What this machine does in each stage, by the stage's key; a stage that is too large to be timed so quickly is missing.

    `folder` is the recipe's run, which need not be there: where its data is made, documents are as long as they are in it.
    """
    from fox.train.compilation import load_compiler
    from fox.train.speed import resident_bytes, time_step

    vocab_size = recipe.tokenizer.vocab_size
    facts = data_facts(folder)
    stages = stages_of(recipe)
    shapes = {key: _shape(recipe, stage, facts) for key, stage in stages.items()}
    compiled = {key: _compiles(recipe, shape, how) for key, shape in shapes.items()}
    if any(compiled.values()):
        load_compiler()
    process_bytes = resident_bytes()
    costs: list[tuple[tuple[str, bool], Shape, StepCost | None]] = []
    found: dict[str, Measured] = {}
    kinds = {(shape.rows, shape.row_length) for shape in shapes.values()}
    for key, stage in stages.items():
        shape = shapes[key]
        optimizer = recipe.tune.optimizer if recipe.tune and key == "tune" else recipe.optimizer
        timed_as = (optimizer.name, compiled[key])
        cost = next((cost for other, known, cost in costs if other == timed_as and _alike(known, shape)), None)
        if cost is None:
            how_long = ", compiled, which takes longest the first time" if compiled[key] else ""
            with console.status(f"timing {key}: {shape.rows} rows of {shape.row_length} tokens{how_long}"):
                limit = limit_s / len(kinds)
                cost = time_step(recipe.model, vocab_size, optimizer, shape, recipe.train, compiled[key], limit)
            costs.append((timed_as, shape, cost))
        if cost is None:
            continue
        passes = max(1, round(stage.batch_tokens / (stage.rows * stage.row_length)))
        found[key] = Measured(
            tokens_per_second=cost.tokens_per_second(passes, passes * stage.rows * stage.row_length),
            peak_bytes=process_bytes + cost.peak_bytes(passes),
            bytes_per_row=cost.row_bytes,
            machine_bytes=machine_bytes(),
            compiled=compiled[key] or not recipe.train.compile,
            timed_rows=cost.timed_rows,
        )
    return found


def _compiles(recipe: Recipe, shape: Shape, how: str) -> bool:
    """Whether a stage is timed with compiled blocks. `auto` does as training will, unless that would take minutes."""
    from fox.train.speed import least_pass_seconds

    if how == "quick" or not recipe.train.compile:
        return False
    return how == "compiled" or least_pass_seconds(recipe.model, recipe.tokenizer.vocab_size, shape) < COMPILED_PASS_S


def _alike(one: Shape, other: Shape) -> bool:
    """Whether a pass of the one costs what a pass of the other does: a fifth more or less of a document's length changes little."""
    mean = [
        sum(length * share for length, share in shape.document_lengths.items()) / sum(shape.document_lengths.values())
        for shape in (one, other)
    ]
    return (one.rows, one.row_length) == (other.rows, other.row_length) and max(mean) <= 1.2 * min(mean)


def data_facts(folder: Path) -> Facts:
    """What the data of a run is known to hold; nothing where it is not made yet, or can't be read."""
    try:
        return Manifest.model_validate_json((folder / "manifests" / "data.json").read_bytes()).facts
    except (OSError, ValueError):
        return Facts()


def _shape(recipe: Recipe, stage: Stage, facts: Facts) -> Shape:
    """A stage's pass. Rows are cut at chunks, and at the ends of documents where these are known to be shorter."""
    from fox.train.speed import Shape

    lengths: dict[int, float] = {}
    for mix_key, weight in stage.mix.items():
        documents = _document_tokens(recipe.sources_of(mix_key, stage.mix), facts)
        for chunk, share in stage.lengths_of(mix_key).items():
            length = max(1, min(chunk, documents or chunk))
            lengths[length] = lengths.get(length, 0.0) + weight * share
    return Shape(stage.rows, stage.row_length, dict(sorted(lengths.items())))


def _document_tokens(sources: list[str], facts: Facts) -> int | None:
    """The mean document of some sources, in tokens; None where it is not known of all of them."""
    trained = [facts.sources[name].train for name in sources if name in facts.sources]
    tokens = sum(size.tokens or 0 for size in trained)
    documents = sum(size.documents or 0 for size in trained)
    return tokens // documents if len(trained) == len(sources) and documents else None
