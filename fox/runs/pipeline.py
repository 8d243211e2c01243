"""`fox run`: every step of a recipe in order, each done once, and each taken up where it was stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from fox.artifacts import disk_failures, locked
from fox.errors import Failure, Problem, RecipeError, UserError
from fox.recipe import LoadedRecipe
from fox.recipe.stage import Stage
from fox.runs import data_steps, steps
from fox.runs.before_training import check_same_training
from fox.runs.folder import STEPS, Run
from fox.runs.inputs import Facts, Inputs, recipe_inputs
from fox.runs.outcome import remove_outcome
from fox.runs.rows import fit_rows, rows_kept
from fox.train.trackers import NONE_WANTED, Wanted

_Step = tuple[Callable[[], Inputs], Callable[[Inputs], Facts]]


def do_steps(
    loaded: LoadedRecipe,
    folder: Path,
    wanted: Sequence[str],
    redo: str | None,
    console: Console,
    watchers: Wanted = NONE_WANTED,
) -> Run:
    """Do the `wanted` steps that are not done, in order, holding the run's folder; what `redo` and later steps made goes first.

    Raises UserError, with nothing removed, where `redo` is none of the wanted steps.
    """
    if redo and redo not in wanted:
        raise UserError(
            "--redo",
            redo,
            problem=f"is not what this command does ({', '.join(wanted)})",
            mend=f"`fox run` with --redo {redo} does it again, and all that follows.",
        )
    with disk_failures(folder):
        _check_folder(folder)
    run = Run(folder, fit_rows(loaded, folder, redo), watchers)
    with locked(folder), disk_failures(folder):
        remove_outcome(folder)
        _check_recipe(run, _before(redo), wanted)
        if redo:
            console.print(f"removed what {', '.join(run.undo(redo))} had made in {folder}")
        for step in wanted:
            if (step == "tune" and not run.recipe.tune) or (step == "corpus" and not run.recipe.makes_corpus):
                continue
            _do(run, step, console)
        run.keep_descriptions()
    return run


def _before(redo: str | None) -> list[str]:
    """The steps of which nothing is removed."""
    names = list(STEPS)
    return names[: names.index(redo)] if redo else names


def _check_recipe(run: Run, kept: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise RecipeError with all of the recipe that is not as it was when the `kept` steps were done, or a wanted one was begun."""
    problems = [problem for step in kept for problem in run.changed(step, recipe_inputs(run.recipe, step))]
    if not problems:
        return  # what has begun is looked at again, in all, before it goes on
    problems += [problem for step in kept if step in wanted for problem in _changed_since_begun(run, step)]
    by_key: dict[str, Problem] = {}
    for problem in problems:  # a key that several steps read: by the first
        by_key.setdefault(problem.key, problem)
    raise RecipeError(list(by_key.values()))


def _changed_since_begun(run: Run, step: str) -> list[Problem]:
    """What is not as it was when a training began that is to go on; nothing where that can't be told yet."""
    stages: Mapping[str, Stage] = {}
    if step == "pretrain":
        stages = run.recipe.stage
    elif step == "tune" and run.recipe.tune:
        stages = {"tune": run.recipe.tune}
    if not stages or run.manifest(step) or not (run.folder / step / "checkpoints").is_dir():
        return []
    try:
        inputs = steps.pretrain_inputs(run) if step == "pretrain" else steps.tune_inputs(run)
        check_same_training(run, step, stages, inputs)
    except RecipeError as error:
        return error.problems
    except (UserError, Failure):  # told in its turn, once the recipe is right
        pass
    return []


def _check_folder(folder: Path) -> None:
    """Raise UserError where `folder` is somebody's own: a step replaces folders named data, model and so on."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise UserError("--out", str(folder), problem="is not UTF-8", mend="Name another folder.") from None
    if folder.exists() and not folder.is_dir():
        raise UserError("--out", str(folder), problem="is a file", mend="Name a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "lock").is_file():
        raise UserError(
            "--out",
            str(folder),
            problem="holds files, and they are no run of Fox's",
            mend="Name a new folder, or an empty one.",
        )


def _do(run: Run, step: str, console: Console) -> None:
    inputs_of, make = _parts(run, step, console)
    inputs = inputs_of()
    done = run.manifest(step)
    if done and run.is_done(step, inputs):
        run.sweep(step)
        console.print(f"[green]✓[/green] {step:<10} done before ({done['seconds']:.0f} s)")
        return
    started = time.time()
    with run.recipe_kept(), rows_kept(run.loaded, run.folder):
        facts = make(inputs)
    seconds = run.finish(step, inputs, facts, started)["seconds"]
    console.print(f"[green]✓[/green] {step:<10} {seconds:.0f} s -> {run.folder / STEPS[step][0]}")


def _parts(run: Run, step: str, console: Console) -> _Step:
    """What a step reads and how it is done."""
    if step in ("corpus", "tokenizer", "data"):
        of_corpus = step != "corpus" and run.recipe.makes_corpus  # the sources' files are nothing to it
        inventory = {} if of_corpus else data_steps.source_inventory(run)
        if step == "corpus":
            return lambda: data_steps.corpus_inputs(run, inventory), lambda inputs: data_steps.make_corpus(
                run, inputs, inventory, console
            )
        if step == "tokenizer":
            return lambda: data_steps.tokenizer_inputs(run, inventory), lambda _: data_steps.make_tokenizer(
                run, console
            )
        return lambda: data_steps.data_inputs(run, inventory), lambda inputs: data_steps.make_data(
            run, inputs, inventory, console
        )
    table: dict[str, _Step] = {
        "pretrain": (lambda: steps.pretrain_inputs(run), lambda inputs: steps.make_pretrain(run, inputs, console)),
        "tune": (lambda: steps.tune_inputs(run), lambda inputs: steps.make_tune(run, inputs, console)),
        "eval": (lambda: steps.eval_inputs(run), lambda _: steps.make_eval(run, console)),
        "report": (lambda: steps.report_inputs(run), lambda _: steps.make_report(run, console)),
    }
    return table[step]
