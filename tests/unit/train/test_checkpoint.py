"""A checkpoint is whole, checked and of this run, or it is refused with what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fox.errors import Failure, UserError
from fox.recipe import Recipe
from fox.train.checkpoint import Identity, load_checkpoint, save_checkpoint
from fox.train.optimizer import make_optimizer
from fox.train.stages import new_model

IDENTITY = Identity({"seed": 7, "optimizer.peak_learning_rate": 0.01, "torch": "2"})
State = tuple[torch.nn.Module, torch.optim.Optimizer]


@pytest.fixture
def trained(make_recipe: Callable[..., Recipe]) -> Callable[[int], State]:
    """A model and its optimiser after some steps."""

    def make(steps: int) -> State:
        recipe = make_recipe()
        model = new_model(recipe, 60)
        optimizer = make_optimizer(model, recipe.optimizer)
        for _ in range(steps):
            model(torch.arange(20)[None]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return model, optimizer

    return make


@pytest.fixture
def folder(trained: Callable[[int], State], tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save_checkpoint(tmp_path / "checkpoints", step, step / 2, *trained(step), IDENTITY, keep=2)
    return tmp_path / "checkpoints"


def tensors(state: State) -> dict[str, torch.Tensor]:
    model, optimizer = state
    moments = {
        f"{name}/{key}": value for name, p in model.named_parameters() for key, value in optimizer.state[p].items()
    }
    return {**model.state_dict(), **moments}


def test_what_is_loaded_is_what_was_saved_to_the_last_bit(trained: Callable[[int], State], folder: Path) -> None:
    state = trained(0)
    assert load_checkpoint(folder, *state, IDENTITY) == (2, 1.0)
    loaded, saved = tensors(state), tensors(trained(2))
    assert loaded.keys() == saved.keys() and len(loaded) > 40
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert any("step" in name for name in loaded)


def test_without_a_checkpoint_a_run_begins(trained: Callable[[int], State], tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none", *trained(0), IDENTITY) == (0, 0.0)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept_as_the_recipe_says(trained: Callable[[int], State], tmp_path: Path, keep: int) -> None:
    state = trained(1)
    for step in (3, 6, 9, 10, 12):
        save_checkpoint(tmp_path, step, 0.0, *state, IDENTITY, keep)
    names = ["step-00000009", "step-00000010", "step-00000012"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names[-keep:]
    assert sorted(path.name for path in (tmp_path / names[-1]).iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, **other: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **other}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of the weights": lambda at: flip(at / "model.safetensors"),
    "a bit of the optimizer": lambda at: flip(at / "optimizer.safetensors"),
    "half the weights": lambda at: (at / "model.safetensors").write_bytes(
        (at / "model.safetensors").read_bytes()[:999]
    ),
    "no weights": lambda at: (at / "model.safetensors").unlink(),
    "no state": lambda at: (at / "state.json").unlink(),
    "an empty state": lambda at: (at / "state.json").write_text(""),
    "a state cut short": lambda at: (at / "state.json").write_text((at / "state.json").read_text()[:50]),
    "a state that is a list": lambda at: (at / "state.json").write_text("[]"),
    "a state without hashes": lambda at: rewrite(at / "state.json", sha256={}),
    "hashes that are none": lambda at: rewrite(at / "state.json", sha256=None),
    "an identity that is none": lambda at: rewrite(at / "state.json", identity=5),
    "another step": lambda at: rewrite(at / "state.json", step=3),
    "a step that is no number": lambda at: rewrite(at / "state.json", step="2"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_a_failure_and_the_older_one_is_named(
    trained: Callable[[int], State], folder: Path, damage: Callable[[Path], Any]
) -> None:
    damage(folder / "step-00000002")
    state = trained(0)
    before = {name: tensor.clone() for name, tensor in tensors(state).items()}
    with pytest.raises(Failure, match=r"step-00000002.*Remove that folder to go on from step-00000001\.") as error:
        load_checkpoint(folder, *state, IDENTITY)
    assert error.value.exit_code == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(state).items())


def test_after_removing_it_the_older_one_is_taken(trained: Callable[[int], State], folder: Path) -> None:
    for path in (folder / "step-00000002").iterdir():
        path.unlink()
    (folder / "step-00000002").rmdir()
    assert load_checkpoint(folder, *trained(0), IDENTITY) == (1, 0.5)


def test_the_only_checkpoint_says_that_a_run_must_begin_again(trained: Callable[[int], State], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, 0.0, *trained(1), IDENTITY, keep=1)
    flip(tmp_path / "step-00000005/model.safetensors")
    with pytest.raises(Failure, match="Remove that folder to start again"):
        load_checkpoint(tmp_path, *trained(0), IDENTITY)


@pytest.mark.parametrize(
    ("facts", "key", "value"),
    [
        ({"optimizer.peak_learning_rate": 0.02}, "optimizer.peak_learning_rate", 0.02),
        ({"torch": "3"}, "torch", "3"),
        ({"new": 1}, "new", 1),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_key_that_differs(
    trained: Callable[[int], State], folder: Path, facts: dict[str, Any], key: str, value: object
) -> None:
    with pytest.raises(UserError) as error:
        load_checkpoint(folder, *trained(0), Identity({**IDENTITY.facts, **facts}))
    (problem,) = error.value.problems
    assert (problem.key, problem.value) == (key, value)
    assert "was" in problem.problem and "--out" in problem.mend and error.value.exit_code == 2
