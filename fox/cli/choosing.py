"""The commands to choose with, before and after: show, plan, find-lr, runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fox.cli.arguments import Out, Override, RecipePath, load
from fox.errors import Failure, UserError


def show(recipe: RecipePath, override: Override = None) -> None:
    """Print every value of a recipe and where it comes from: a line of the file, `-o`, or a default."""
    from fox.recipe.show import print_recipe

    print_recipe(load(recipe, override))


def plan(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file: recipes/tiny.toml.")
    ] = None,
    override: Override = None,
    gpus: Annotated[int, typer.Option(help="How many GPUs share the work.")] = 1,
    gpu: Annotated[
        str | None, typer.Option(help="Which: h100-80gb, a100-80gb, … (a wrong name lists them all).")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(help="The share of the GPU's peak that training reaches.", show_default="0.40")
    ] = None,
    tokens_per_second: Annotated[float | None, typer.Option(help="A rate that you measured, instead of --mfu.")] = None,
    measure: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="This machine, where no GPU or rate is given: auto (as the recipe trains; where that compiles, a minute or more the first time), quick (seconds, not compiled), compiled (however long a pass takes), no. With --budget, auto times sizes quickly, and the one that it chooses as the recipe trains.",
        ),
    ] = "auto",
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Propose size, tokens, learning rate and batch for so long on this machine: 8h, 90m, 2d.",
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what --budget proposes as a recipe of its own.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """Say what a recipe will cost before it costs anything: parameters, FLOPs, memory, tokens a second, days.

    With --budget, which size and how many tokens a time buys here; RECIPE may then be left out.
    """
    from rich.console import Console

    from fox.runs.choose import Wish, plan_recipe, propose_for, with_rows_of

    wish = Wish(gpus=gpus, gpu=gpu, mfu=mfu, tokens_per_second=tokens_per_second, measure=measure)
    console = Console(stderr=True)
    loaded = with_rows_of(load(recipe, override), wish, console) if recipe else None
    if budget is not None:
        typer.echo(propose_for(loaded, budget, wish, write, as_json, console))
    elif write is not None:
        raise UserError("--write", str(write), problem="is for a proposal", mend="Give --budget 8h, too.")
    elif loaded is None:
        raise UserError("RECIPE", problem="is missing", mend="Name a recipe, or give --budget 8h for a proposal.")
    else:
        typer.echo(plan_recipe(loaded.recipe, wish, as_json, console))


def find_lr(
    recipe: RecipePath,
    override: Override = None,
    out: Out = None,
    rates: Annotated[
        int, typer.Option(min=3, max=15, help="How many, each twice the one before, around the recipe's.")
    ] = 5,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="How long each is tried.", show_default="a fiftieth of the recipe's, at least 50 steps"
        ),
    ] = None,
) -> None:
    """Find a learning rate: short runs from the same weights over the same data, each with its own warm-up and decay.

    Makes the recipe's data first where they are not there. Stop it whenever you like: it goes on where it was.

    No rate above one that diverged is recommended, and none that taught nothing; where that leaves none, the exit code is 1.
    """
    from rich.console import Console

    from fox.runs.find_rate import best_of, describe_trials, find_rate, what_to_try

    loaded = load(recipe, override)
    folder = out or Path("runs") / loaded.recipe.name
    trials = find_rate(loaded, folder, rates, tokens, Console(stderr=True))
    typer.echo(describe_trials(loaded.recipe, trials, folder))
    if best_of(loaded.recipe, trials) is None:
        raise Failure(what_to_try(loaded.recipe, trials))


runs_app = typer.Typer(
    help="List the runs, how far they are, how good, and how large; compare some, or throw away what one no longer needs.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)


@runs_app.callback(invoke_without_command=True)
def runs(
    context: typer.Context,
    folder: Annotated[Path, typer.Option("--in", metavar="FOLDER", help="Where the runs lie.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """List the runs: each step, tokens, loss, held-out bits per byte, size on the disk, last change."""
    if context.invoked_subcommand:
        return
    import json
    from dataclasses import asdict

    from fox.runs.listing import describe_runs, summaries

    found = summaries(folder)
    typer.echo(json.dumps([asdict(one) for one in found], indent=2) if as_json else describe_runs(found, folder))


@runs_app.command(name="compare")
def compare_runs_(
    run: Annotated[list[Path], typer.Argument(metavar="RUNS", help="Two or more runs: runs/a runs/b.")],
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Draw all losses by tokens into this PNG.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """What differs: keys of the recipe, scores, speed; and the losses in one picture."""
    import json

    from fox.runs.listing import compare_runs, describe_comparison

    compared = compare_runs(run, picture)
    typer.echo(json.dumps(compared, indent=2) if as_json else describe_comparison(compared))


@runs_app.command(name="clean")
def clean_(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: runs/tiny.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, it is only told.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """What a run no longer needs: older checkpoints, and what killed processes left. Never of one that is running."""
    import json

    from fox.runs.listing import clean, describe_waste, waste_of

    found = clean(run) if yes else waste_of(run)
    told = [{"path": str(waste.path), "why": waste.why, "bytes": waste.bytes} for waste in found]
    typer.echo(json.dumps(told, indent=2) if as_json else describe_waste(run, found, removed=yes))
