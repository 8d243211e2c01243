"""The commands that make a model, step by step: run, corpus, pretrain, tune, eval, report. What `fox data` has is in data.py, and `fox tokenizer` in vocabulary.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fox.cli.arguments import Out, Override, RecipePath, Redo, load
from fox.errors import UserError

if TYPE_CHECKING:
    from fox.runs.folder import Run
    from fox.train.trackers import Wanted

TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write each step for TensorBoard, too.")]
WandB = Annotated[
    str | None,
    typer.Option("--wandb", metavar="PROJECT", help="Send each step to this project of Weights & Biases, too."),
]
MLflow = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Send each step to this MLflow server (or folder), too.")
]


def run(
    recipe: RecipePath,
    override: Override = None,
    out: Out = None,
    redo: Redo = None,
    tensorboard: TensorBoard = False,
    wandb: WandB = None,
    mlflow: MLflow = None,
) -> None:
    """Do everything: corpus where there is to be one, tokenizer, data, pretrain, tune, eval, report.

    Steps that are done are skipped. Stop it whenever you like, even with kill -9: the same command goes on from the last
    checkpoint, and gives the same losses as if it had never stopped.
    """
    from fox.runs.folder import STEPS
    from fox.runs.summary import print_summary

    done = do(recipe, override, out, list(STEPS), redo, _watchers(tensorboard, wandb, mlflow))
    print_summary(done)


def corpus(recipe: RecipePath, override: Override = None, out: Out = None, redo: Redo = None) -> None:
    """Make the sources into a corpus, where the recipe asks for one: read, filtered and de-duplicated by all cores, or by a cluster.

    `fox data report` shows what became of the documents. Stop it whenever you like: the same command goes on.
    """
    from fox.report.funnel import write_funnel

    done = do(recipe, override, out, ["corpus"], redo)
    if not done.recipe.makes_corpus:
        mend = "Add a [data.executor] table, or take the sources as they are: fox tokenizer, fox data."
        raise UserError("data", problem="asks for no corpus", mend=mend)
    typer.echo(f"what became of the documents: {write_funnel(done.folder)}")


def pretrain(
    recipe: RecipePath,
    override: Override = None,
    out: Out = None,
    redo: Redo = None,
    tensorboard: TensorBoard = False,
    wandb: WandB = None,
    mlflow: MLflow = None,
) -> None:
    """Train the base model through the curriculum's stages. Goes on from the last checkpoint."""
    do(recipe, override, out, ["pretrain"], redo, _watchers(tensorboard, wandb, mlflow))


def tune(
    recipe: RecipePath,
    override: Override = None,
    out: Out = None,
    redo: Redo = None,
    tensorboard: TensorBoard = False,
    wandb: WandB = None,
    mlflow: MLflow = None,
) -> None:
    """Tune the base model on chats: it learns from the assistant's words alone."""
    do(recipe, override, out, ["tune"], redo, _watchers(tensorboard, wandb, mlflow))


def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe (.toml), or any model: see `fox chat`.")
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(help="For a model: a file or folder of text to measure it on. Repeat it for more."),
    ] = None,
    chats: Annotated[list[Path] | None, typer.Option(help="For a model: chats as JSON Lines with `messages`.")] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=2, help="For a model: measure on so many tokens of each file at most.", show_default="20000"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For a model: print JSON for a program.")] = False,
    override: Override = None,
    out: Out = None,
    redo: Redo = None,
) -> None:
    """Measure how well text is predicted, in bits per byte: a run's models on held-out text, or any model on your files.

    With a recipe: base and tuned model beside a bigram model, and how the replies read.
    """
    from rich.console import Console

    for_model = {"--text": text, "--chats": chats, "--max-tokens": max_tokens, "--json": as_json}
    for_recipe = {"-o": override, "--out": out, "--redo": redo}
    is_recipe = target.endswith(".toml")
    for option, value in (for_model if is_recipe else for_recipe).items():
        if value:
            kind, other = ("recipe", "model") if is_recipe else ("model", "recipe")
            raise UserError(option, problem=f"is for a {other}, and {target} is a {kind}", mend="Leave it out.")
    if not is_recipe:
        from fox.runs.score import score_model

        score_model(target, text or [], chats or [], max_tokens or 20_000, as_json, Console(stderr=True))
        return
    done = do(Path(target), override, out, ["eval"], redo)
    from fox.runs.summary import print_scores

    print_scores(done)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="A run's folder: runs/tiny. It need not be finished. Several are compared."),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(
            "--picture",
            metavar="FILE",
            help="Of several runs: draw all losses by tokens into this PNG.",
            show_default="comparison.png beside the first run",
        ),
    ] = None,
) -> None:
    """Draw a run: one HTML file that needs nothing else, and PNGs of its plots. Of several runs: what differs between them.

    `fox report A B` writes what `fox runs compare A B` does, and draws their losses in one picture.
    """
    if len(runs) > 1:
        from fox.runs.listing import compare_runs, describe_comparison

        typer.echo(describe_comparison(compare_runs(runs, picture or runs[0].parent / "comparison.png")))
        return
    if picture is not None:
        mend = "Name more, or leave it out: the report has the run's own plots."
        raise UserError("--picture", str(picture), problem="is for several runs, and one is named", mend=mend)
    from fox.artifacts import locked
    from fox.report.page import write_report
    from fox.report.run_files import read_run

    folder = runs[0]
    read_run(folder)  # a folder that is no run is not locked, since that would make a file in it
    with locked(folder):
        typer.echo(f"wrote {write_report(folder)}")


def _watchers(tensorboard: bool, wandb: str | None, mlflow: str | None) -> Wanted:
    from fox.train.trackers import Wanted

    wanted = Wanted(tensorboard, wandb, mlflow)
    wanted.check()
    return wanted


def do(
    recipe: Path,
    override: list[str] | None,
    out: Path | None,
    wanted: list[str],
    redo: str | None,
    watchers: Wanted | None = None,
) -> Run:
    """Do the `wanted` steps of a recipe, as `fox run` does them."""
    from rich.console import Console

    from fox.runs.folder import STEPS
    from fox.runs.together import do_steps, told_by_one_rank
    from fox.train.trackers import NONE_WANTED

    if redo is not None and redo not in STEPS:
        raise UserError("--redo", redo, problem="is no step", mend=f"Steps: {', '.join(STEPS)}.")
    with told_by_one_rank():
        loaded = load(recipe, override)
        if wanted == ["tune"] and loaded.recipe.tune is None:
            mend = "Add a [tune] table; recipes/tiny.toml has one."
            raise UserError("tune", problem="is not in this recipe", mend=mend)
    return do_steps(
        loaded, out or Path("runs") / loaded.recipe.name, wanted, redo, Console(stderr=True), watchers or NONE_WANTED
    )
