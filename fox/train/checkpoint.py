"""Checkpoints: what a run needs to go on as if it had never stopped, and nothing that has to be unpickled.

A checkpoint is a folder `step-00000100` with the model's and the optimiser's tensors (safetensors), and `state.json`: the
step, what the run was made of (a run made of anything else is refused), and the hash of each file, checked on reading.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fox.artifacts import folder_made_whole, sha256_of, write_json
from fox.errors import Failure, UserError
from fox.formats.safetensors import read_safetensors, write_safetensors

_FILES = ("model.safetensors", "optimizer.safetensors")
_STATE = "state.json"
_HOW_BACK = {
    "fox": "Install that fox",
    "torch": "Install that torch",
    "threads": "Set OMP_NUM_THREADS to that number",
}
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Identity:
    """What makes a run this run: going on with anything else would change its losses in silence."""

    facts: dict[str, Any]

    def check(self, saved: dict[str, Any], place: Path) -> None:
        """Raise UserError naming the first fact in which a checkpoint differs."""
        for key in sorted(self.facts.keys() | saved.keys()):
            if self.facts.get(key) != saved.get(key):
                raise UserError(
                    key,
                    self.facts.get(key),
                    place=str(place),
                    problem=f"was {saved.get(key)!r} when this run began, and going on with another would change its losses",
                    mend=f"{_HOW_BACK.get(key, 'Go back to that value')}, or start again with --redo or another --out.",
                )


def save_checkpoint(
    folder: Path,
    step: int,
    seconds: float,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: Identity,
    keep: int,
) -> None:
    """Write the checkpoint of `step` whole, then remove all but the newest `keep`."""
    target = folder / _name_of(step)
    with folder_made_whole(target) as partial:
        write_safetensors(partial / _FILES[0], model.state_dict())
        write_safetensors(partial / _FILES[1], _optimizer_tensors(model, optimizer))
        hashes = {name: sha256_of(partial / name) for name in _FILES}
        write_json(partial / _STATE, {"step": step, "seconds": seconds, "identity": identity.facts, "sha256": hashes})
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: Identity
) -> tuple[int, float]:
    """Fill model and optimiser from the newest checkpoint; its step and seconds of training, or (0, 0.0) where there is none.

    A damaged checkpoint is a Failure, never skipped in silence: the reader decides to go back to an older one.
    """
    checkpoints = _newest_first(folder)
    if not checkpoints:
        return 0, 0.0
    newest = checkpoints[0]
    try:
        state = json.loads((newest / _STATE).read_text(encoding="utf-8"))
        step, seconds, facts, hashes = state["step"], float(state["seconds"]), dict(state["identity"]), state["sha256"]
        if newest.name != _name_of(step):
            raise ValueError(f"it says that it is of step {step}")
        damaged = [name for name in _FILES if sha256_of(newest / name) != hashes[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"{newest}: unreadable ({error}). {_go_back(checkpoints)}") from error
    if damaged:
        raise Failure(f"{newest / damaged[0]}: damaged (its hash is not the one written). {_go_back(checkpoints)}")
    identity.check(facts, newest)
    with torch.no_grad():
        weights = model.state_dict()
        for name, tensor in read_safetensors(
            newest / _FILES[0], {n: tuple(t.shape) for n, t in weights.items()}
        ).items():
            weights[name].copy_(tensor)
        _fill_optimizer(newest / _FILES[1], model, optimizer)
    return step, seconds


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _fill_optimizer(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    shapes = {
        f"{name}/{key}": () if key == "step" else tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        for key in _MOMENTS
    }
    tensors = read_safetensors(path, shapes)
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {key: tensors[f"{name}/{key}"].to(parameter.device) for key in _MOMENTS}


def _name_of(step: int) -> str:
    return f"step-{step:08d}"


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _go_back(checkpoints: list[Path]) -> str:
    if len(checkpoints) > 1:
        return f"Remove that folder to go on from {checkpoints[1].name}."
    return "Remove that folder to start again."
