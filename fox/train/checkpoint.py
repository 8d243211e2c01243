"""Checkpoints: what a run needs to go on as if it had never stopped, on as many ranks as there are then.

A checkpoint is a folder `step-00000100` that torch.distributed.checkpoint has written, each rank its part, and `state.json`:
the step, what the run was made of (a run made of anything else is refused), the events so far, and the hash of each file.
The text file `latest` names the checkpoint to go on from, and moves only once that is whole on the disk.

torch pickles the file `.metadata` and an optimiser's values that are no tensors: the one place where Fox unpickles anything,
and only after the hashes of all files were found to be those in `state.json`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from fox.artifacts import disk_failures, folder_made_whole, remove_at_once, sha256_of, write_atomically, write_json
from fox.errors import Failure, Problem, RecipeError
from fox.formats.safetensors import read_safetensors
from fox.model import Transformer
from fox.train.team import ALONE, Team
from fox.train.trouble import earliest_drift, unchanged_since

FORMAT = 2
LATEST = "latest"
_STATE = "state.json"
_STATE_OF = "state."  # how torch begins the names of an optimiser's tensors
_FIRST_FORMAT = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Identity:
    """What makes a run this run: going on with other `facts` would make it another. What is in `free` may change: it decides
    rounding, or when a run is saved."""

    facts: dict[str, Any]
    free: dict[str, Any] = field(default_factory=dict)

    def check(self, saved: Mapping[str, Any], saved_free: Mapping[str, Any], place: Path) -> dict[str, Any]:
        """What has changed of what may, as {key: [was, is]}. Raises RecipeError with every fact in which a checkpoint differs."""
        # The first format knew no free ones, and had them among the facts.
        saved_free = {**{key: saved[key] for key in self.free if key in saved}, **saved_free}
        changed = {key: [was, self.free[key]] for key, was in saved_free.items() if self.free.get(key, was) != was}
        problems = []
        for key in sorted((self.facts.keys() | saved.keys()) - saved_free.keys()):
            if self.facts.get(key) != saved.get(key):
                problems.append(
                    Problem(
                        key,
                        f"was {saved.get(key)!r} when this run began, and going on with another would change its losses",
                        "Go back to that value, or start again with --redo or another --out.",
                        self.facts.get(key),
                        str(place),
                    )
                )
        if problems:
            problems += [
                Problem(key, f"has changed, too (was {was!r}), and is free to", "", now)
                for key, (was, now) in sorted(changed.items())
            ]
            raise RecipeError(problems)
        return changed


@dataclass
class Progress:
    """How far a run has come: steps done, seconds of training, and all that happened to it on the way."""

    step: int = 0
    seconds: float = 0.0
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run. Every method is called by all ranks; the leader alone makes, hashes and removes folders."""

    folder: Path
    identity: Identity
    keep: int
    milestone_every_steps: int | None = None
    needed_steps: Collection[int] = ()
    """Of these steps checkpoints stay, too, for the end of the run needs them (averaging)."""
    team: Team = ALONE
    drift_steps: int = 0
    """Trouble may be so many steps old when it is seen. What is kept reaches back beyond them."""

    def save(self, progress: Progress, model: Transformer, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint whole, point `latest` at it, then remove those that are `outlived`.

        One that is saved while trouble keeps the weights as they are is one more, and only the newest such stays: it
        pushes out none from before the trouble, which a roll-back may need.
        """
        name = name_of(progress.step)
        state = _state_of(model, optimizer)
        if not self.team.leads:
            partial = Path(self.team.from_leader(lambda: None))
            with disk_failures(self.folder / name):
                _write(partial, state, self.team)
            self.team.from_leader(lambda: None)
            return
        with folder_made_whole(self.folder / name) as partial:
            self.team.from_leader(lambda: str(partial))
            _write(partial, state, self.team)
            hashes = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
            about = {"format": FORMAT, **vars(progress), "identity": self.identity.facts, "free": self.identity.free}
            write_json(partial / _STATE, {**about, "sha256": hashes})
        write_atomically(self.folder / LATEST, f"{name}\n")
        remove_at_once(self.outlived(progress))
        self.team.from_leader(lambda: None)  # nobody goes on, and nobody ends, before it is safe

    def load(self, model: Transformer, optimizer: torch.optim.Optimizer) -> Progress:
        """Fill model and optimiser from the checkpoint that `latest` names; how far the run had come.

        A damaged checkpoint is a Failure, never skipped in silence: the reader decides to go back to an older one.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = self.team.from_leader(lambda: self._checked(shapes))
        if found is None:
            return Progress()
        place, progress = self.folder / found.pop("name"), Progress(**found)
        state = _state_of(model, optimizer)
        with _told_as_failures(place):
            dcp.load(state, storage_reader=FileSystemReader(place), no_dist=self.team.size == 1)
        _fill(model, optimizer, state)
        return progress

    def check_identity(self) -> None:
        """Raise RecipeError where the checkpoint to go on from is of another run. For one rank: nothing is changed, and of the
        checkpoint only what it is made of is read."""
        checkpoints = self._not_newer_than(self._latest())
        if checkpoints:
            state = _state_as_told(checkpoints[0], checkpoints)
            self.identity.check(state["identity"], state["free"], checkpoints[0])

    def steps(self) -> list[int]:
        """Of what steps there are checkpoints, oldest first."""
        return [_step_of(path) for path in reversed(_newest_first(self.folder))]

    def go_back(self, step: int) -> None:
        """Make that of `step` the latest: the next `load` goes on from it, and removes the newer ones."""
        self.team.from_leader(lambda: write_atomically(self.folder / LATEST, f"{name_of(step)}\n"))

    def _checked(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
        """The name of the checkpoint to go on from, and the progress it tells, once all that it holds is as it was written."""
        latest = self._latest()
        checkpoints = self._not_newer_than(latest)
        if not checkpoints:
            return None
        newest = checkpoints[0]
        state = _read_state(newest, checkpoints)
        try:
            progress = Progress(state["step"], float(state["seconds"]), list(state.get("events", [])))
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(newest, error, checkpoints) from error
        changed = self.identity.check(state["identity"], state["free"], newest)
        if changed:
            progress.events.append({"event": "changed", "step": progress.step, "values": changed})
        if latest not in (None, newest.name):
            progress.events.append({"event": "went back", "step": progress.step, "from": latest})
        never_latest = set(_newest_first(self.folder)) - set(checkpoints)
        remove_at_once(never_latest)  # their steps are done again
        if state.get("format", 1) == 1:
            _to_second_format(newest, state, shapes)
        return {"name": newest.name, **vars(progress)}

    def _not_newer_than(self, latest: str | None) -> list[Path]:
        """The checkpoints up to that of this name, or all, newest first: those that there are to go on from."""
        return [path for path in _newest_first(self.folder) if latest is None or path.name <= latest]

    def _latest(self) -> str | None:
        """The name in `latest`; None where there is no such file, as in the first format and before the first checkpoint."""
        path = self.folder / LATEST
        try:
            name = path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Failure(f"{path}: unreadable ({error}). Remove it to go on from the newest checkpoint.") from error
        if not name.startswith("step-") or "/" in name:
            raise Failure(f"{path}: names no checkpoint ({name[:40]!r}). Remove it to go on from the newest one.")
        return name

    def outlived(self, progress: Progress) -> list[Path]:
        """Which checkpoints are needed no more where that of `progress` is the latest.

        Those that stay are the newest `keep`, the newest from before any drift that may yet be seen, and the oldest of the others, which
        will be such a one in time: however close together they are saved, two more than `keep` reach back far enough.
        """
        every = self.milestone_every_steps
        there = [path for path in _newest_first(self.folder) if _step_of(path) <= progress.step]
        passing = [
            path
            for path in there
            if not (every and _step_of(path) and _step_of(path) % every == 0)
            and _step_of(path) not in self.needed_steps
        ]
        since = unchanged_since(progress.events, progress.step)
        troubled = [path for path in passing if since is not None and _step_of(path) >= since]
        older = passing[len(troubled) :][self.keep :]
        drift = earliest_drift(progress.events, progress.step, self.drift_steps)
        before_drift = [path for path in there if _step_of(path) < drift]
        to_come = [path for path in older if _step_of(path) >= drift]
        stay = {*before_drift[:1], *to_come[-1:]}
        return troubled[1:] + [path for path in older if path not in stay]


def read_weights(checkpoint: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The whole weights of one checkpoint, in float32, however many ranks wrote it. Raises Failure where it is damaged."""
    _read_state(checkpoint, [checkpoint])
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    with _told_as_failures(checkpoint):
        dcp.load({"model": weights}, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return weights


def name_of(step: int) -> str:
    """The folder of the checkpoint that was saved after `step` steps."""
    return f"step-{step:08d}"


def _state_of(model: Transformer, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All tensors by name, as they lie on this rank. An optimiser that has not stepped yet gets its state here (of zeros)."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    if not optimizer.state:
        # Torch makes the state by a step with gradients of zeros at a rate of zero, which changes no weight, but is counted.
        get_optimizer_state_dict(model, optimizer, options=options)
        for values in optimizer.state.values():
            for value in values.values():
                value.zero_()
    moments = get_optimizer_state_dict(model, optimizer, options=options)
    return {
        "model": get_model_state_dict(model),
        "optimizer": {key: value for key, value in moments.items() if key.startswith(_STATE_OF)},
    }


def _fill(model: Transformer, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The optimiser's settings (rate, decay) stay those of the recipe, which `Identity` has compared."""
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    settings = get_optimizer_state_dict(model, optimizer, options=options)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, {**settings, **state["optimizer"]}, options=options)


def _write(folder: Path, state: dict[str, Any], team: Team) -> None:
    with _told_as_failures(folder):
        writer = FileSystemWriter(folder)  # each rank one file, fsynced
        dcp.save(state, storage_writer=writer, no_dist=team.size == 1)


@contextmanager
def _told_as_failures(place: Path) -> Iterator[None]:
    """torch tells of any rank's error by one exception of its own; here it is the disk's error again, or a Failure."""
    try:
        with warnings.catch_warnings():  # one process is what is meant
            warnings.filterwarnings(
                "ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning
            )
            yield
    except CheckpointException as error:
        causes = [cause for first, _ in error.failures.values() for cause in _chain(first)]
        for cause in causes:
            if isinstance(cause, KeyboardInterrupt):
                raise KeyboardInterrupt from error
            if isinstance(cause, OSError) and cause.errno:
                raise OSError(cause.errno, cause.strerror, str(cause.filename or place)) from error
        raise Failure(f"{place}: {causes[0] if causes else error}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised in the midst of: torch's writer stumbles over the disk's error with one of its own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _state_as_told(checkpoint: Path, checkpoints: list[Path]) -> dict[str, Any]:
    """state.json, with nothing beside it looked at. Raises Failure naming the checkpoint to go back to where it is none."""
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        if state.get("format", 1) not in (1, FORMAT):
            raise Failure(
                f"{checkpoint}: is of format {state['format']}, and this fox reads up to {FORMAT}. Install a newer one."
            )
        if checkpoint.name != name_of(state["step"]):
            raise ValueError(f"it says that it is of step {state['step']}")
        return {**state, "identity": dict(state["identity"]), "free": dict(state.get("free", {}))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(checkpoint, error, checkpoints) from error


def _read_state(checkpoint: Path, checkpoints: list[Path]) -> dict[str, Any]:
    """state.json, once every file beside it is found to be what it says. Raises Failure naming the checkpoint to go back to."""
    state = _state_as_told(checkpoint, checkpoints)
    try:
        there = {path.name for path in checkpoint.iterdir()} - {_STATE}
        if there ^ state["sha256"].keys():
            raise ValueError(f"{min(there ^ state['sha256'].keys())} is missing or not its own")
        if not there:
            raise ValueError("it names no files")
        damaged = [name for name, digest in state["sha256"].items() if sha256_of(checkpoint / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(checkpoint, error, checkpoints) from error
    if damaged:
        raise Failure(f"{checkpoint / damaged[0]}: damaged (its hash is not the one written). {_go_back(checkpoints)}")
    return state


def _to_second_format(checkpoint: Path, state: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a checkpoint of the first format (two safetensors files, one rank, AdamW) as one of the second, in its place."""
    of_moments = {
        f"{name}/{key}": () if key == "step" else shape
        for name, shape in shapes.items()
        for key in ("exp_avg", "exp_avg_sq", "step")
    }
    weights = read_safetensors(checkpoint / _FIRST_FORMAT[0], shapes)
    moments = read_safetensors(checkpoint / _FIRST_FORMAT[1], of_moments)
    optimizer = {f"{_STATE_OF}{name.replace('/', '.')}": tensor for name, tensor in moments.items()}
    with folder_made_whole(checkpoint) as partial:
        _write(partial, {"model": weights, "optimizer": optimizer}, ALONE)
        hashes = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
        write_json(partial / _STATE, {**state, "format": FORMAT, "events": [], "free": {}, "sha256": hashes})
    write_atomically(checkpoint.parent / LATEST, f"{checkpoint.name}\n")


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdecimal()), reverse=True)


def _unreadable(checkpoint: Path, error: Exception, checkpoints: list[Path]) -> Failure:
    return Failure(f"{checkpoint}: unreadable ({error}). {_go_back(checkpoints)}")


def _go_back(checkpoints: list[Path]) -> str:
    if len(checkpoints) > 1:
        return f"Remove that folder to go on from {checkpoints[1].name}."
    return "Remove that folder to start again."
