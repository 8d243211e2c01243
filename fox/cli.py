"""The `fox` command. Each command reads its words here and does its work elsewhere; torch is loaded only where it is needed."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from fox import __version__
from fox.errors import Failure, Stopped, UserError

if TYPE_CHECKING:
    from fox.recipe import LoadedRecipe
    from fox.runs.folder import Run
    from fox.train.trackers import Wanted

app = typer.Typer(
    name="fox",
    help="From web pages to a small language model that you trained, understand and run.\n\n"
    "Start with `fox run recipes/tiny.toml`: it does all the steps below, in minutes, on 2 cores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a TOML file: recipes/tiny.toml.")]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run (runs/tiny), a model's folder (Hugging Face, safetensors), a .gguf file, or a name on the hub (owner/model).",
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "-o",
        metavar="KEY=VALUE",
        help="Change one value of the recipe: -o stage.foundation.tokens=2e6. Repeat it for more.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FOLDER", help="Where the run lives.", show_default="runs/ and the recipe's name"),
]
Redo = Annotated[
    str | None,
    typer.Option("--redo", metavar="STEP", help="Remove what this step and all later ones made, and do them again."),
]


TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write each step for TensorBoard, too.")]
WandB = Annotated[
    str | None,
    typer.Option("--wandb", metavar="PROJECT", help="Send each step to this project of Weights & Biases, too."),
]
MLflow = Annotated[
    str | None, typer.Option("--mlflow", metavar="URI", help="Send each step to this MLflow server (or folder), too.")
]


@app.command()
def run(
    recipe: RecipePath,
    override: Override = None,
    out: Out = None,
    redo: Redo = None,
    tensorboard: TensorBoard = False,
    wandb: WandB = None,
    mlflow: MLflow = None,
) -> None:
    """Do everything: tokenizer, data, pretrain, tune, eval, report.

    Steps that are done are skipped. Stop it whenever you like, even with kill -9: the same command goes on from the last
    checkpoint, and gives the same losses as if it had never stopped.
    """
    from fox.runs.folder import STEPS
    from fox.runs.summary import print_summary

    done = _do(recipe, override, out, list(STEPS), redo, _watchers(tensorboard, wandb, mlflow))
    print_summary(done)


@app.command()
def show(recipe: RecipePath, override: Override = None) -> None:
    """Print every value of a recipe and where it comes from: a line of the file, `-o`, or a default."""
    from fox.recipe.show import print_recipe

    print_recipe(_load(recipe, override))


@app.command()
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
            help="This machine, where no GPU or rate is given: quick (seconds), compiled (a minute or more, as training runs), no.",
        ),
    ] = "quick",
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

    from fox.runs.choose import Wish, plan_recipe, propose_for

    wish = Wish(gpus=gpus, gpu=gpu, mfu=mfu, tokens_per_second=tokens_per_second, measure=measure)
    loaded = _load(recipe, override) if recipe else None
    console = Console(stderr=True)
    if budget is not None:
        typer.echo(propose_for(loaded, budget, wish, write, as_json, console))
    elif write is not None:
        raise UserError("--write", str(write), problem="is for a proposal", mend="Give --budget 8h, too.")
    elif loaded is None:
        raise UserError("RECIPE", problem="is missing", mend="Name a recipe, or give --budget 8h for a proposal.")
    else:
        typer.echo(plan_recipe(loaded.recipe, wish, as_json, console))


@app.command(name="find-lr")
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
    """
    from rich.console import Console

    from fox.runs.find_rate import describe_trials, find_rate

    loaded = _load(recipe, override)
    folder = out or Path("runs") / loaded.recipe.name
    trials = find_rate(loaded, folder, rates, tokens, Console(stderr=True))
    typer.echo(describe_trials(loaded.recipe, trials, folder))


@app.command()
def tokenizer(recipe: RecipePath, override: Override = None, out: Out = None, redo: Redo = None) -> None:
    """Train the vocabulary on the sources' training text (byte-level BPE, with the chat template stored beside it)."""
    _do(recipe, override, out, ["tokenizer"], redo)


class _DataCommands(typer.core.TyperGroup):
    """`fox data RECIPE` is `fox data prepare RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = (*self.commands, *ctx.help_option_names)
        return super().parse_args(ctx, args if args and args[0] in known else ["prepare", *args])


data_app = typer.Typer(
    cls=_DataCommands,
    help="Make the sources into token shards: `fox data RECIPE`. Or look at what a step of a training is made of: `fox data inspect RUN --step 100`.",
)
app.add_typer(data_app, name="data")


@data_app.command(name="prepare")
def data(recipe: RecipePath, override: Override = None, out: Out = None, redo: Redo = None) -> None:
    """Read the sources, drop exact duplicates, hold some documents out, and write token shards with a manifest.

    The word `prepare` may be left out: `fox data RECIPE`.
    """
    done = _do(recipe, override, out, ["data"], redo)
    from fox.runs.summary import print_sources

    print_sources(done)


@data_app.command(name="inspect")
def inspect_(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: runs/tiny.")],
    step: Annotated[int, typer.Option(metavar="N", help="A step of the pre-training, counted from 1.")],
    tokens: Annotated[int, typer.Option(min=1, help="Show so many tokens of each document at most.")] = 60,
) -> None:
    """Print the documents of one step, row by row: source, place, epoch, whether they are cut, their first words; and the mixture."""
    from fox.runs.inspect import inspect_step

    for line in inspect_step(folder, step, tokens):
        typer.echo(line)


@app.command()
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
    _do(recipe, override, out, ["pretrain"], redo, _watchers(tensorboard, wandb, mlflow))


@app.command()
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
    if _load(recipe, override).recipe.tune is None:
        raise UserError("tune", problem="is not in this recipe", mend="Add a [tune] table; recipes/tiny.toml has one.")
    _do(recipe, override, out, ["tune"], redo, _watchers(tensorboard, wandb, mlflow))


@app.command(name="eval")
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
    done = _do(Path(target), override, out, ["eval"], redo)
    from fox.runs.summary import print_scores

    print_scores(done)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: runs/tiny. It need not be finished.")],
) -> None:
    """Draw a run: one HTML file that needs nothing else, and PNGs of its plots."""
    from fox.artifacts import locked
    from fox.report.page import write_report
    from fox.report.run_files import read_run

    read_run(folder)  # a folder that is no run is not locked, since that would make a file in it
    with locked(folder):
        typer.echo(f"wrote {write_report(folder)}")


@app.command()
def chat(
    model: ModelName,
    prompt: Annotated[str | None, typer.Option(help="Answer this one message and end.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    temperature: Annotated[
        float, typer.Option(min=0, help="0 always takes the likeliest word; 1 is as the model has it.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1, help="Choose among the likeliest words that have this share together.")
    ] = 0.9,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many words at most; 0 is all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same replies.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 256,
) -> None:
    """Talk with a model: a run, a Hugging Face folder, a GGUF file, or a name on the hub.

    Ctrl-C stops a reply, Ctrl-D ends; lines from a pipe are answered one by one.
    """
    from fox.engine.sampler import Sampling
    from fox.runs.chat import chat_with

    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    chat_with(model, prompt, system, sampling, max_tokens)


@app.command(name="export")
def export_(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="The file (gguf) or folder (hf, ollama) to make.")],
    to: Annotated[
        str,
        typer.Option(
            help="gguf (llama.cpp, LM Studio), hf (transformers, vLLM), or ollama (a GGUF and its Modelfile)."
        ),
    ] = "gguf",
    file_type: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="f32, f16, bf16; for gguf and ollama q8_0, q5_1, q5_0, q4_k_m, q4_1, q4_0 too.",
            show_default="as it is stored",
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For hf: cut the weights into files of at most this.", show_default="5GB"),
    ] = None,
) -> None:
    """Write a model for other engines. It is read back and compared with its source before it counts as done.

    Token ids must be equal on texts known to be hard, and predictions within what the type's rounding does; otherwise no file
    is left.
    """
    from rich.console import Console

    from fox.runs.export import export_model

    export_model(model, to, file_type, out, shard_size, Console(stderr=True))


@app.command()
def compare(
    model_a: Annotated[
        str, typer.Argument(metavar="MODEL_A", help="The model to hold the other against: see `fox chat`.")
    ],
    model_b: Annotated[
        str, typer.Argument(metavar="MODEL_B", help="The other: converted, quantised, or tuned further.")
    ],
    text: Annotated[Path, typer.Option(help="A text file that both read.")],
    chunk: Annotated[int, typer.Option(min=2, help="Tokens of context at most.")] = 512,
    max_tokens: Annotated[int, typer.Option(min=2, max=100_000, help="Compare on so many tokens at most.")] = 8192,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a program.")] = False,
) -> None:
    """How far two models agree on a text: likeliest token, KL divergence, perplexity. For whatever was converted or quantised."""
    from rich.console import Console

    from fox.runs.compare import compare_models

    compare_models(model_a, model_b, text, chunk, max_tokens, as_json, Console(stderr=True))


runs_app = typer.Typer(
    help="List the runs, how far they are, how good, and how large; compare some, or throw away what one no longer needs.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)
app.add_typer(runs_app, name="runs")


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


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    if version:
        typer.echo(f"fox {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point: runs the command, and turns errors into messages and exit codes (2 a user's mistake, 1 a failure)."""
    try:
        try:
            app(standalone_mode=True)
        finally:
            sys.stdout.flush()  # what can't be written is told here, and not by Python as it ends
    except UserError as error:
        for problem in error.problems:
            typer.secho(f"error: {problem}", err=True, fg="red")
        sys.exit(error.exit_code)
    except Failure as error:
        typer.secho(f"failed: {error}", err=True, fg="red")
        sys.exit(error.exit_code)
    except Stopped as error:
        typer.secho(f"stopped: {error}", err=True)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        typer.secho(f"error: this needs {error.name}: pip install 'foxlm[{extra}]'.", err=True, fg="red")
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as end:  # typer turns the one into the other
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        goes_on = " A run goes on from here with the same command (without --redo)."
        typer.secho(f"stopped.{goes_on if _is_of_a_run(sys.argv[1:]) else ''}", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone: nobody is left to tell
        sys.exit(1)
    except OSError as error:
        # Who writes a file says which; all that is met without a name here is the output.
        if not _output_fails() and (error.filename is not None or error.errno not in _FULL):
            raise
        typer.secho(f"failed: standard output: can't be written ({error.strerror}).", err=True, fg="red")
        sys.exit(1)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _is_of_a_run(words: list[str]) -> bool:
    """Whether a command works on a run, which its next call goes on with."""
    command, *rest = words or [""]
    if command == "eval":  # of a model, too
        return any(word.endswith(".toml") for word in rest)
    return command in ("run", "tokenizer", "data", "pretrain", "tune", "report", "find-lr")


def _output_fails() -> bool:
    """Whether standard output can't be written. What was meant for it is let go then, or Python would try again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (it is no path of a file)
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


_EXTRA_OF = {"torch": "train", "matplotlib": "train", "pyarrow": "data", "resiliparse": "data"}
"""The extra of the distribution that brings each optional library."""


def _load(recipe: Path, override: list[str] | None) -> LoadedRecipe:
    from fox.recipe import load_recipe
    from fox.recipe.start import Shape

    def shape_of(name: str) -> Shape:
        from fox.runs.start import shape_of

        return shape_of(name)

    return load_recipe(recipe, override or [], shape_of)


def _watchers(tensorboard: bool, wandb: str | None, mlflow: str | None) -> Wanted:
    from fox.train.trackers import Wanted

    wanted = Wanted(tensorboard, wandb, mlflow)
    wanted.check()
    return wanted


def _do(
    recipe: Path,
    override: list[str] | None,
    out: Path | None,
    wanted: list[str],
    redo: str | None,
    watchers: Wanted | None = None,
) -> Run:
    from rich.console import Console

    from fox.runs.folder import STEPS
    from fox.runs.together import do_steps, told_by_one_rank
    from fox.train.trackers import NONE_WANTED

    if redo is not None and redo not in STEPS:
        raise UserError("--redo", redo, problem="is no step", mend=f"Steps: {', '.join(STEPS)}.")
    with told_by_one_rank():
        loaded = _load(recipe, override)
    return do_steps(
        loaded, out or Path("runs") / loaded.recipe.name, wanted, redo, Console(stderr=True), watchers or NONE_WANTED
    )
