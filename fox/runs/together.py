"""The steps of a run on one process, or on the many that `torchrun -m fox …` starts: one leads, and does all but the training alone."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from fox.errors import Failure, FoxError, Stopped, UserError
from fox.recipe import LoadedRecipe, Recipe
from fox.recipe.schema import Stage
from fox.runs import pipeline
from fox.runs.folder import Run
from fox.runs.rows import fit_rows
from fox.runs.steps import follow
from fox.train.trackers import NONE_WANTED, Wanted

if TYPE_CHECKING:
    from fox.train.team import ManyRanks

_TELLS_WITHIN_S = 10


def do_steps(
    loaded: LoadedRecipe,
    folder: Path,
    wanted: Sequence[str],
    redo: str | None,
    console: Console,
    watchers: Wanted = NONE_WANTED,
) -> Run:
    """`pipeline.do_steps`, by this process alone or, of many, by the leader; the others train when it does, and end when it is done.

    What goes wrong is told once, by whoever meets it first, and all end with its exit code. SIGTERM ends with 75.
    Raises UserError where so many ranks can't train this recipe.
    """
    if num_ranks() == 1:
        loaded = fit_rows(loaded, folder, redo)
        check_ranks(loaded.recipe, 1, wanted)
        with _ended_by_sigterm():
            return pipeline.do_steps(loaded, folder, wanted, redo, console, watchers)
    from fox.train.team import join

    team = join()
    with _ended_by_sigterm(), _told_once(team):
        data_ranks = max(1, team.size // loaded.recipe.train.tensor_parallel)
        rows = team.from_leader(lambda: dict(fit_rows(loaded, folder, redo, data_ranks).fitted_rows))
        loaded = loaded.with_rows(rows or {})
        check_ranks(loaded.recipe, team.size, wanted)
        team.share_model(loaded.recipe.train.tensor_parallel)
        if not team.leads:
            follow(Run(folder, loaded), team)
            team.leave()
            sys.exit(0)
        done = pipeline.do_steps(loaded, folder, wanted, redo, console, watchers)
        team.from_leader(lambda: None)
        team.leave()
        return done


@contextlib.contextmanager
def told_by_one_rank() -> Iterator[None]:
    """What is wrong with a recipe is seen by every rank, and told by the first of each machine."""
    try:
        yield
    except FoxError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            _end_in_silence(error.exit_code)
        raise


def num_ranks() -> int:
    """How many processes train together, as torchrun (or whatever sets its variables) says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_ranks(recipe: Recipe, ranks: int, wanted: Sequence[str]) -> None:
    """Raise UserError where so many processes can't share the recipe's model, its optimiser or its steps' rows evenly."""
    tensor_ranks = recipe.train.tensor_parallel
    _check_tensor_parallel(recipe, tensor_ranks, ranks)
    if ranks > 1:
        _check_weights(recipe, wanted)
    data_ranks = ranks // tensor_ranks
    stages: dict[str, Stage] = {}
    if "pretrain" in wanted:
        stages |= {f"stage.{name}": stage for name, stage in recipe.stage.items()}
    if "tune" in wanted and recipe.tune:
        stages["tune"] = recipe.tune
    for key, stage in stages.items():
        together = data_ranks * stage.rows * stage.row_length
        sizes = {"batch_tokens": stage.batch_tokens}
        if stage.batch_ramp:  # its steps are multiples of what divides the first and the last one
            sizes["batch_ramp.start"] = stage.batch_ramp.start
        for name, size in sizes.items():
            if size % together:
                nearest = max(1, round(size / together)) * together
                raise UserError(
                    f"{key}.{name}",
                    size,
                    problem=f"is no multiple of ranks x rows x chunk length = {data_ranks} x {stage.rows} x {stage.row_length} = {together}",
                    mend=f"Try -o {key}.{name}={nearest}, or -o {key}.rows=1, or start fewer processes.",
                )


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Outside of training, where nothing is to be saved: what is half-made is removed, and the exit code says that it goes on."""

    def end(*_: object) -> NoReturn:
        # Sent again (by torchrun, and by who sent it to torchrun), it disturbs no clearing up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped("asked to end (SIGTERM). The same command goes on from here.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _told_once(team: ManyRanks) -> Iterator[None]:
    from fox.train.team import Ended

    try:
        yield
    except Ended as ended:
        _end_in_silence(ended.exit_code)
    except KeyboardInterrupt:
        _end_unless_first(team, 130)
        raise
    except FoxError as error:
        _end_unless_first(team, error.exit_code)
        raise
    except RuntimeError as error:  # of a collective: another has gone, and may have told why
        _end_unless_first(team, 1)
        if "gloo" not in str(error) and not type(error).__module__.startswith("torch"):
            raise
        raise Failure(
            f"another process of this run has ended ({error}). The same command goes on from the last checkpoint."
        ) from error


def _end_unless_first(team: ManyRanks, exit_code: int) -> None:
    """End this process in silence where another has told what is wrong."""
    try:
        first = team.first_to_tell(exit_code)
        told = team.exit_code_told()
    except RuntimeError:  # the store went with the process that kept it
        first, told = team.leads, None
    if not first:
        _end_in_silence(exit_code if told is None else told)


def _end_in_silence(exit_code: int) -> NoReturn:
    """torchrun ends all ranks when the first one ends: leave that to the one that tells why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Where all were asked to end, nobody else will end this one, and a scheduler waits for it.
    time.sleep(1 if exit_code == Stopped.exit_code else _TELLS_WITHIN_S)
    sys.exit(exit_code)


def _check_weights(recipe: Recipe, wanted: Sequence[str]) -> None:
    optimizers = {"optimizer": recipe.optimizer} if "pretrain" in wanted else {}
    if "tune" in wanted and recipe.tune:
        optimizers["tune.optimizer"] = recipe.tune.optimizer
    for key, optimizer in optimizers.items():
        if recipe.train.precision == "bf16-weights":
            raise UserError(
                "train.precision",
                recipe.train.precision,
                problem="is for one process: it rounds each weight by chance, and here each would be spread over several",
                mend="-o train.precision=bf16, or start one process.",
            )
        if optimizer.name == "adafactor":  # torch's own takes norms in place, which sharded tensors refuse
            raise UserError(
                f"{key}.name",
                optimizer.name,
                problem="is for one process: torch's adafactor can't step weights that are spread over several",
                mend=f"-o {key}.name=adamw, or start one process.",
            )
        if recipe.train.tensor_parallel > 1 and optimizer.name != "adamw":
            raise UserError(
                f"{key}.name",
                optimizer.name,
                problem="needs whole heads, and train.tensor_parallel cuts them",
                mend=f"-o train.tensor_parallel=1, or -o {key}.name=adamw.",
            )


def _check_tensor_parallel(recipe: Recipe, tensor_ranks: int, ranks: int) -> None:
    key = "train.tensor_parallel"
    if ranks % tensor_ranks:
        raise UserError(
            key,
            tensor_ranks,
            problem=f"does not divide the {ranks} {'process' if ranks == 1 else 'processes'} that train",
            mend="Start a multiple of it with torchrun --nproc-per-node, or -o train.tensor_parallel=1.",
        )
    model = recipe.model
    for name, heads in (
        ("num_attention_heads", model.num_attention_heads),
        ("num_key_value_heads", model.num_key_value_heads),
        ("intermediate_size", model.intermediate_size),
    ):
        if heads % tensor_ranks:
            raise UserError(
                key,
                tensor_ranks,
                problem=f"does not divide model.{name} = {heads}, which is cut among so many processes",
                mend="Use a divisor of it.",
            )
