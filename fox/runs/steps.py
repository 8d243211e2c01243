"""The steps from token shards to a report. Each reads what earlier ones made, fills its folders, and tells its facts; `pipeline` does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import fox
from fox.artifacts import folder_made_whole, write_json
from fox.formats.token_shards import Shard
from fox.progress import Meter, meter
from fox.recipe import Recipe
from fox.recipe.stage import Stage
from fox.recipe.write import toml_page
from fox.runs.before_training import check_memory, check_same_training, check_undamaged, shards_of, sources_of
from fox.runs.data_steps import open_shards
from fox.runs.folder import Run, flat
from fox.runs.inputs import Facts, Inputs, recipe_inputs
from fox.tokenizer import Tokenizer
from fox.train.trackers import Trackers

if TYPE_CHECKING:
    from fox.train.team import Team


def pretrain_inputs(run: Run) -> Inputs:
    inputs = {
        **recipe_inputs(run.recipe, "pretrain"),
        "tokenizer": run.needs("tokenizer")["outputs"],
        "data": run.needs("data")["outputs"],
    }
    if run.recipe.model.start_from is not None:
        from fox.runs.start import files_of_start

        inputs["base_model"] = files_of_start(run)
    return inputs


def make_pretrain(run: Run, inputs: Inputs, console: Console) -> Facts:
    """Train the base model through the curriculum, scoring held-out text after each stage, and before where it is not new."""
    from fox.model.directory import save_model
    from fox.runs.measure import AT_START, AVERAGED, heldout_scores
    from fox.runs.start import base_model_facts, open_start, trainable
    from fox.train.stages import new_model, pretrain, total_tokens, what_was_read

    recipe = run.recipe
    check_same_training(run, "pretrain", recipe.stage, inputs)
    tokenizer = Tokenizer.load(run.folder / "tokenizer")
    check_memory(recipe, {f"stage.{name}": stage for name, stage in recipe.stage.items()}, tokenizer.vocab_size)
    read = [*shards_of(run, sources_of(recipe, recipe.stage), "train"), *shards_of(run, recipe.source, "heldout")]
    check_undamaged(run, {"tokenizer": inputs["tokenizer"], "data": read}, console)
    start = open_start(run) if recipe.model.start_from is not None else None
    model = trainable(start) if start else new_model(recipe, tokenizer.vocab_size)
    folder = run.folder / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)

    def after_stage(stage: str, trained: Any) -> None:
        when = {AT_START: "before training", AVERAGED: "with averaged weights"}.get(stage, f"after stage {stage}")
        console.print(f"[dim]scoring held-out text {when}[/dim]")
        write_json(folder / "heldout" / f"{stage}.json", heldout_scores(run, trained, tokenizer))

    shards = open_shards(run, "train", tokenizer.vocab_size)
    _pack(recipe, recipe.stage, shards, folder, console)
    if start:
        tokenizer.stop_ids |= start.tokenizer.stop_ids
        if not ((folder / "checkpoints").exists() and (folder / "heldout" / f"{AT_START}.json").exists()):
            after_stage(AT_START, model)
    team = followed("pretrain", inputs, tokenizer.vocab_size)
    tokens = total_tokens(recipe.stage)
    with _watched(run, folder) as watch, meter("pretrain", tokens, "tokens", console=console) as shown:
        outcome = pretrain(recipe, model, shards, folder, flat(inputs), shown, after_stage, team, watch.on_row)
    averaged = _average(run, model, after_stage, console) if recipe.train.average_checkpoints else {}
    save_model(run.folder / "model", model, tokenizer, advised=start.generation if start else None)
    facts = {
        **_training_facts(recipe, recipe.stage, model, vars(outcome)),
        **what_was_read(recipe, recipe.stage, shards, folder),
        **averaged,
    }
    return {**facts, "base_model": base_model_facts(run, start)} if start else facts


def _average(run: Run, model: Any, after_stage: Callable[[str, Any], None], console: Console) -> Facts:
    """Give `model` the mean of its late checkpoints' weights, or leave it the last ones where these need fewer bits for the held-out
    text. Both are scored."""
    from fox.runs.measure import AVERAGED, bits_per_byte_in_all
    from fox.train.averaging import average_checkpoints, averaged_steps

    recipe, checkpoints = run.recipe, run.folder / "pretrain" / "checkpoints"
    steps = averaged_steps(recipe.stage.values(), recipe.schedule, recipe.train)
    average_checkpoints(checkpoints, steps, model)
    model.eval()
    after_stage(AVERAGED, model)
    mean, last = (bits_per_byte_in_all(run, name) for name in (AVERAGED, list(recipe.stage)[-1]))
    told = f"the mean of the checkpoints of steps {', '.join(map(str, steps))} needs {mean:.4f} bits per byte of held-out text"
    if mean > last:
        average_checkpoints(checkpoints, steps[-1:], model)  # of one alone: its weights
        told = f"note: {told}, and the last weights {last:.4f}: these stay the model."
    console.print(told, highlight=False, soft_wrap=True)
    return {"averaged_steps": steps, "model_is_averaged": mean <= last}


def tune_inputs(run: Run) -> Inputs:
    return {
        **recipe_inputs(run.recipe, "tune"),
        "model": _below("model", run.needs("pretrain")["outputs"]),
        "data": run.needs("data")["outputs"],
    }


def make_tune(run: Run, inputs: Inputs, console: Console) -> Facts:
    """Tune the base model on chats."""
    from fox.model.directory import save_model
    from fox.model.stored import open_model
    from fox.train.stages import total_tokens, tune, what_was_read

    recipe = run.recipe
    assert recipe.tune
    stages = {"tune": recipe.tune}
    check_same_training(run, "tune", stages, inputs)
    base = open_model(run.folder / "model")
    check_memory(recipe, stages, base.tokenizer.vocab_size)
    read = shards_of(run, sources_of(recipe, stages), "train")
    check_undamaged(run, {"pretrain": inputs["model"], "data": read}, console)
    model, tokenizer = base.load(), base.tokenizer
    shards = open_shards(run, "train", tokenizer.vocab_size)
    folder = run.folder / "tune"
    folder.mkdir(parents=True, exist_ok=True)
    _pack(recipe, {"tune": recipe.tune}, shards, folder, console)
    team = followed("tune", inputs, tokenizer.vocab_size)
    tokens = total_tokens({"tune": recipe.tune})
    with _watched(run, folder) as watch, meter("tune", tokens, "tokens", console=console) as shown:
        outcome = tune(recipe, model, shards, folder, flat(inputs), shown, lambda *_: None, team, watch.on_row)
    save_model(run.folder / "tuned", model, tokenizer, advised=base.generation)
    facts = _training_facts(recipe, {"tune": recipe.tune}, model, vars(outcome))
    return {**facts, **what_was_read(recipe, {"tune": recipe.tune}, shards, folder)}


def _watched(run: Run, folder: Path) -> Trackers:
    """Whoever else watches the training in `folder`. They see the resolved recipe."""
    page = run.recipe.model_dump(mode="json")
    return Trackers(run.watchers, folder, f"{run.recipe.name}-{folder.name}", page, toml_page(page))


def _pack(recipe: Recipe, stages: dict[str, Any], shards: dict[str, Shard], folder: Path, console: Console) -> None:
    """Pack the documents into chunks, where that is not done; tell where their mixtures will be missed."""
    from fox.train.curriculum import mixture_warnings
    from fox.train.readings import padding_warnings
    from fox.train.stages import pack

    with meter("pack", None, "tokens", console=console) as shown:
        orders, index = pack(recipe, stages, shards, folder, shown)
    for warning in (*mixture_warnings(recipe, orders), *padding_warnings(index.facts, orders)):
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)


def followed(step: str, inputs: Inputs, vocab_size: int) -> Team:
    """The team that trains, after all the others of it were told to do this step, too (`follow`)."""
    from fox.train.team import current_team

    team = current_team()
    team.from_leader(lambda: {"step": step, "inputs": flat(inputs), "vocab_size": vocab_size})
    return team


def follow(run: Run, team: Team) -> None:
    """What every rank but the leader does: train whenever the leader does, until that has nothing more to do. It writes nothing but
    its part of each checkpoint."""
    from fox.train.stages import pretrain, tune

    while (told := team.from_leader(lambda: None)) is not None:
        step, silent = told["step"], Meter(told["step"], None, "tokens")
        train = {"pretrain": pretrain, "tune": tune}[step]
        shards = open_shards(run, "train", told["vocab_size"])
        train(run.recipe, None, shards, run.folder / step, told["inputs"], silent, lambda *_: None, team)


def eval_inputs(run: Run) -> Inputs:
    base = run.needs("pretrain")["outputs"]
    inputs = {
        **recipe_inputs(run.recipe, "eval"),
        "model": _below("model", base) | _below("pretrain/heldout", base),
        "data": run.needs("data")["outputs"],
    }
    if run.recipe.tune:
        inputs["tuned"] = _below("tuned", run.needs("tune")["outputs"])
    return inputs


def make_eval(run: Run, console: Console) -> Facts:
    """Score base and tuned model on held-out text, and read their replies."""
    from fox.runs.measure import measure

    results = measure(run, console)
    with folder_made_whole(run.folder / "eval") as partial:
        write_json(partial / "results.json", results)
    return {
        key: results[key]
        for key in ("bits_per_byte", "assistant_bits_per_byte", "kneser_ney_bits_per_byte", "replies")
        if key in results
    }


def report_inputs(run: Run) -> Inputs:
    done = {step: run.needs(step)["outputs"] for step in ("data", "pretrain", "eval")}
    return {"fox": fox.__version__, **done}


def make_report(run: Run, console: Console) -> Facts:
    """Draw the report."""
    from fox.report.page import write_report

    return {"page": str(write_report(run.folder).relative_to(run.folder))}


def _below(folder: str, outputs: dict[str, str]) -> dict[str, str]:
    """Of the files that a step made, those in one folder: a later step's inputs are what it reads, and no more."""
    return {name: digest for name, digest in outputs.items() if name.startswith(f"{folder}/")}


def _training_facts(recipe: Recipe, stages: Mapping[str, Stage], model: Any, outcome: dict[str, Any]) -> Facts:
    from fox.train.machine import losses_depend_on, processor, resolve_precision
    from fox.train.team import current_team

    return {
        "parameters": model.num_parameters(),
        **outcome,
        "precision": resolve_precision(recipe.train.precision),
        "rows": {name: stage.rows for name, stage in stages.items()},
        "ranks": current_team().size,
        "cpu": processor(),
        **losses_depend_on(),
    }
