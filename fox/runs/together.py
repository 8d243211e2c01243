"""The steps of a run on one process, or on the many that `torchrun -m fox …` starts: one leads, and does all but the training alone."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from fox.errors import Failure, FoxError, RecipeError, Stopped, UserError, shorten
from fox.recipe import LoadedRecipe, Recipe
from fox.recipe.stage import Stage
from fox.runs import pipeline
from fox.runs.alike import differences
from fox.runs.folder import Run
from fox.runs.outcome import outcome_written, write_outcome
from fox.runs.rows import fit_rows, stages_of
from fox.runs.steps import follow
from fox.train.trackers import NONE_WANTED, Wanted

if TYPE_CHECKING:
    from fox.train.team import ManyRanks

_TELLS_WITHIN_S = 10
_ASKED_TO_END = "asked to end (SIGTERM). The same command goes on from here."
_VARIABLES = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")

# What gloo says of a connection names its own sources; nccl's errors have types of their own.
_OF_A_CONNECTION = re.compile(r"gloo/(transport|rendezvous|common)|[Cc]onnection (closed|reset|refused)|Broken pipe")
_OF_MEMORY = re.compile(r"DefaultCPUAllocator|alloc_cpu|can't allocate memory")


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
    How it ended is left in `folder`/outcome.json. Raises UserError where so many ranks can't train this recipe, and where
    they have not all got the same.
    """
    with told_by_one_rank():
        ranks = num_ranks()
    if ranks == 1:
        with outcome_written(folder), _ended_by_sigterm():
            loaded = fit_rows(loaded, folder, redo)
            check_ranks(loaded.recipe, 1, wanted)
            with _memory_told(loaded.recipe):
                return pipeline.do_steps(loaded, folder, wanted, redo, console, watchers)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_ended_by_sigterm())
        team = _meet(ranks, console)
        if team.leads:
            stack.enter_context(outcome_written(folder))
        with _told_once(team, folder):
            problems, warnings = differences(team, loaded, wanted)
        with told_by_one_rank():  # of every machine: which of them has another recipe, its own user sees
            if problems:
                raise RecipeError(problems)
        if team.leads:
            for warning in warnings:
                console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
        stack.enter_context(_told_once(team, folder))
        data_ranks = max(1, team.size // loaded.recipe.train.tensor_parallel)
        rows = team.from_leader(lambda: dict(fit_rows(loaded, folder, redo, data_ranks).fitted_rows))
        loaded = loaded.with_rows(rows or {})
        check_ranks(loaded.recipe, team.size, wanted)
        stack.enter_context(_memory_told(loaded.recipe))
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
    """How many processes train together, as torchrun (or whatever sets its variables) says. Raises UserError where it says too little."""
    told = {name: os.environ.get(name) for name in _VARIABLES}
    size, rank = told["WORLD_SIZE"], told["RANK"]
    if size in (None, "1") and rank in ((None,) if size is None else (None, "0")):
        return 1
    by_torchrun = "Start the processes with torchrun, which sets it, or unset WORLD_SIZE and RANK to train with one."
    for name, value in told.items():
        if value is None:
            raise UserError(name, problem="is not set, and others of torchrun's variables are", mend=by_torchrun)
        if name == "WORLD_SIZE" and not _number(value) >= 1:
            raise UserError(name, value, problem="is no number of processes", mend=by_torchrun)
        if name == "RANK" and not _number(value) < _number(size):
            raise UserError(name, value, problem=f"is none of 0 to {_number(size) - 1:.0f}", mend=by_torchrun)
    return int(_number(size))


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


def _meet(ranks: int, console: Console) -> ManyRanks:
    """The team, once all are there. Raises Failure where somebody does not come."""
    from fox.train.team import join

    if os.environ["RANK"] == "0":
        console.print(f"[dim]waiting for {ranks - 1} other process{'es' if ranks > 2 else ''}[/dim]")
    try:
        return join()
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        raise Failure(f"the {ranks} processes of this run did not all meet ({error}). Start them again.") from error


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Outside of training, where nothing is to be saved: what is half-made is removed, and the exit code says that it goes on."""

    def end(*_: object) -> NoReturn:
        # Sent again (by torchrun, and by who sent it to torchrun), it disturbs no clearing up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(_ASKED_TO_END)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _told_once(team: ManyRanks, folder: Path) -> Iterator[None]:
    from fox.train.team import Ended

    try:
        yield
    except Ended as ended:
        if team.leads and ended.exit_code == Stopped.exit_code:
            raise Stopped(_ASKED_TO_END) from None
        _end_in_silence(ended.exit_code)
    except KeyboardInterrupt:
        _end_unless_first(team, 130, folder)
        raise
    except FoxError as error:
        _end_unless_first(team, error.exit_code, folder)
        raise
    except OSError as error:
        _end_unless_first(team, 1, folder)
        if error.filename is None:  # of the output, which the command line tells
            raise
        raise Failure(f"{error.filename}: {error.strerror}") from error
    except Exception as error:
        _end_unless_first(team, 1, folder)
        if not _is_of_a_connection(error):
            raise  # a mistake of ours
        raise Failure(  # of a collective: another has gone, without a word
            f"another process of this run has ended ({error}). The same command goes on from the last checkpoint."
        ) from error


def _is_of_a_connection(error: Exception) -> bool:
    """Whether an error is what torch says when another process has gone, and not of this one's own work."""
    import torch.distributed as dist

    if isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError):
        return True
    return isinstance(error, RuntimeError) and _OF_A_CONNECTION.search(str(error)) is not None


@contextlib.contextmanager
def _memory_told(recipe: Recipe) -> Iterator[None]:
    """Where the memory does not suffice: that, and what takes less of it."""
    try:
        yield
    except RuntimeError as error:
        if not _is_of_memory(error):
            raise
        fewer = [f"-o {key}.rows={stage.rows // 2}" for key, stage in stages_of(recipe).items() if stage.rows > 1]
        mends = [f"fewer rows at a time ({' '.join(fewer)})"] if fewer else []
        if not recipe.train.activation_checkpointing:
            mends.append("-o train.activation_checkpointing=true")
        mends.append("a smaller model, or more processes to share it")
        raise Failure(
            f"the memory does not suffice ({shorten(str(error).partition(chr(10))[0])}). What takes less: {'; '.join(mends)}. "
            "With fewer rows, or on more processes, a training that has begun goes on; else do it again with --redo, or another --out."
        ) from error


def _is_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or _OF_MEMORY.search(str(error)) is not None


def _number(text: str | None) -> float:
    """Of digits, what they say, and else what no limit allows."""
    return int(text) if text is not None and text.isascii() and text.isdecimal() else math.nan


def _end_unless_first(team: ManyRanks, exit_code: int, folder: Path) -> None:
    """End this process in silence where another has told what is wrong. The leader first leaves that one's exit code.

    That they are asked to end is told by the leader, whoever hears of it first: torchrun, which hears of it too, takes the store
    with it, and then nobody could ask who has told.
    """
    try:
        first = team.first_to_tell(exit_code)
        told = team.exit_code_told()
    except RuntimeError:  # the store went with the process that kept it
        first, told = team.leads, None
    if Stopped.exit_code in (exit_code, told):
        if not team.leads:
            _end_in_silence(Stopped.exit_code)
        if exit_code != Stopped.exit_code:
            raise Stopped(_ASKED_TO_END)
        return
    if not first:
        code = exit_code if told is None else told
        if team.leads:
            write_outcome(folder, code)  # torchrun may end this process while it is silent
        _end_in_silence(code)


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
