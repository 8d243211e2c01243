"""The `fox` command. Each command reads its words in this package and does its work elsewhere; torch is loaded only where it is needed."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from fox import __version__
from fox.cli import choosing, data, models, training, vocabulary
from fox.errors import Failure, Stopped, UserError

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

for command, name in (  # in the order of the help
    (training.run, "run"),
    (choosing.show, "show"),
    (choosing.plan, "plan"),
    (choosing.find_lr, "find-lr"),
    (training.corpus, "corpus"),
    (training.pretrain, "pretrain"),
    (training.tune, "tune"),
    (training.evaluate, "eval"),
    (training.report, "report"),
    (models.chat, "chat"),
    (models.export_, "export"),
    (models.compare, "compare"),
):
    app.command(name=name)(command)
app.add_typer(vocabulary.app, name="tokenizer")
app.add_typer(data.app, name="data")
app.add_typer(choosing.runs_app, name="runs")


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
    return command in ("run", "corpus", "tokenizer", "data", "pretrain", "tune", "report", "find-lr")


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
