"""A checkpoint is whole, checked and of this run, or it is refused with what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fox.artifacts import PARTIAL, sha256_of
from fox.errors import Failure, UserError
from fox.formats.safetensors import write_safetensors
from fox.recipe import Recipe
from fox.recipe.schema import Train
from fox.train import checkpoint
from fox.train.checkpoint import Checkpoints, Identity, Progress
from fox.train.optimizer import make_optimizer
from fox.train.stages import new_model

IDENTITY = Identity({"seed": 7, "optimizer.peak_learning_rate": 0.01, "torch": "2"}, {"ranks": 1, "train.keep": 2})
WHOLE = [".metadata", "__0_0.distcp", "state.json"]
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
        of(tmp_path / "checkpoints").save(Progress(step, step / 2, [{"event": "test"}]), *trained(step))
    return tmp_path / "checkpoints"


def of(folder: Path, identity: Identity = IDENTITY, keep: int = 2, every: int | None = None) -> Checkpoints:
    return Checkpoints(folder, identity, keep, every)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tensors(state: State) -> dict[str, torch.Tensor]:
    model, optimizer = state
    moments = {
        f"{name}/{key}": value for name, p in model.named_parameters() for key, value in optimizer.state[p].items()
    }
    return {**model.state_dict(), **moments}


def test_what_is_loaded_is_what_was_saved_to_the_last_bit(trained: Callable[[int], State], folder: Path) -> None:
    state = trained(0)
    assert of(folder).load(*state) == Progress(2, 1.0, [{"event": "test"}])
    loaded, saved = tensors(state), tensors(trained(2))
    assert loaded.keys() == saved.keys() and len(loaded) > 40
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert any("step" in name for name in loaded)


def test_without_a_checkpoint_a_run_begins(trained: Callable[[int], State], tmp_path: Path) -> None:
    assert of(tmp_path / "none").load(*trained(0)) == Progress()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_are_kept_as_the_recipe_says(trained: Callable[[int], State], tmp_path: Path, keep: int) -> None:
    state = trained(1)
    for step in (3, 6, 9, 10, 12):
        of(tmp_path, keep=keep).save(Progress(step), *state)
    kept = ["step-00000009", "step-00000010", "step-00000012"]
    assert names(tmp_path) == ["latest", *kept[-keep:]]
    assert names(tmp_path / kept[-1]) == WHOLE
    assert (tmp_path / "latest").read_text() == "step-00000012\n"


def test_milestones_are_never_removed_and_do_not_count(trained: Callable[[int], State], tmp_path: Path) -> None:
    state = trained(1)
    for step in range(12):
        of(tmp_path, keep=2, every=4).save(Progress(step), *state)
    assert names(tmp_path) == ["latest", *(f"step-{step:08d}" for step in (4, 8, 10, 11))]


@pytest.mark.parametrize(("keep", "every"), [(2, 8), (1, 1), (1, 100), (3, 10)])
def test_one_from_before_any_drift_is_always_kept(tmp_path: Path, keep: int, every: int) -> None:
    """However close together they are saved; a drift that is seen after some step began 32 steps before, at the earliest."""
    drift = Train().drift_steps
    checkpoints = Checkpoints(tmp_path, IDENTITY, keep, drift_steps=drift)
    for step in range(0, 40 * every + 1, every):
        (tmp_path / checkpoint.name_of(step)).mkdir()
        for path in checkpoints.outlived(Progress(step)):
            path.rmdir()
        there = checkpoints.steps()
        assert there[-keep:] == list(range(max(0, step - (keep - 1) * every), step + 1, every))
        assert len(there) <= keep + 2
        for seen in range(max(step, drift), step + every):
            since = seen - drift + 1
            before = [kept for kept in there if kept < since]
            assert before and since - before[-1] <= drift + every


def test_one_that_never_became_the_latest_is_removed_and_not_taken(
    trained: Callable[[int], State], folder: Path
) -> None:
    (folder / "latest").write_text("step-00000001\n")
    assert of(folder).load(*trained(0)).step == 1
    assert names(folder) == ["latest", "step-00000001"]


def test_the_latest_moves_only_when_its_checkpoint_is_whole(
    trained: Callable[[int], State], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str, list[str]]] = []
    write = checkpoint.write_atomically

    def watched(path: Path, content: str) -> None:
        seen.append(((folder / "latest").read_text(), content, names(folder / "step-00000003")))
        write(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", watched)
    of(folder).save(Progress(3), *trained(3))
    assert seen == [("step-00000002\n", "step-00000003\n", WHOLE)]


def test_all_of_a_checkpoint_is_on_the_disk_before_the_latest_names_it(
    trained: Callable[[int], State], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no kill can show, for the page cache outlives a process: after a power cut only what was synced is there."""
    story: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def told(path: Path) -> str:
        return path.resolve().relative_to(folder.resolve()).as_posix().replace(PARTIAL, "")

    def synced(descriptor: int) -> None:
        story.append(f"synced {told(Path(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def renamed(path: Path, target: Path, how: Callable[..., Path]) -> Path:
        story.append(f"named {told(target)}")
        return how(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", lambda path, target: renamed(path, target, replace))
    monkeypatch.setattr(Path, "rename", lambda path, target: renamed(path, target, rename))
    of(folder).save(Progress(3), *trained(3))
    name = "step-00000003"
    named, last = story.index(f"named {name}"), story.index("named latest")
    files = {f"synced {name}/{file}" for file in WHOLE}
    assert {*files, f"synced {name}"} <= set(story[:named]), "the files and the folder that lists them"
    assert "synced ." in story[named:last], "the folder that lists the checkpoint"
    assert any(each.startswith("synced ") and "latest" in each for each in story[:last]), "and what latest says"
    assert "synced ." in story[last:]


@pytest.mark.parametrize("content", ["", "step-1/../../x", "newest", "\xff\xfe"])
def test_a_latest_that_names_no_checkpoint_is_a_failure(
    trained: Callable[[int], State], folder: Path, content: str
) -> None:
    (folder / "latest").write_bytes(content.encode("latin1"))
    with pytest.raises(Failure, match=r"latest: .*Remove it to go on from the newest"):
        of(folder).load(*trained(0))
    (folder / "latest").unlink()
    assert of(folder).load(*trained(0)).step == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, **other: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **other}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of the tensors": lambda at: flip(at / "__0_0.distcp"),
    "a bit of the pickled metadata": lambda at: flip(at / ".metadata"),
    "half the tensors": lambda at: (at / "__0_0.distcp").write_bytes((at / "__0_0.distcp").read_bytes()[:999]),
    "no tensors": lambda at: (at / "__0_0.distcp").unlink(),
    "a file more": lambda at: (at / "__1_0.distcp").write_text("x"),
    "no state": lambda at: (at / "state.json").unlink(),
    "an empty state": lambda at: (at / "state.json").write_text(""),
    "a state cut short": lambda at: (at / "state.json").write_text((at / "state.json").read_text()[:50]),
    "a state that is a list": lambda at: (at / "state.json").write_text("[]"),
    "a state without hashes": lambda at: rewrite(at / "state.json", sha256={}),
    "hashes that are none": lambda at: rewrite(at / "state.json", sha256=None),
    "an identity that is none": lambda at: rewrite(at / "state.json", identity=5),
    "another step": lambda at: rewrite(at / "state.json", step=3),
    "events that are none": lambda at: rewrite(at / "state.json", events=5),
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
        of(folder).load(*state)
    assert error.value.exit_code == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(state).items())


def test_after_removing_it_the_older_one_is_taken(trained: Callable[[int], State], folder: Path) -> None:
    for path in (folder / "step-00000002").iterdir():
        path.unlink()
    (folder / "step-00000002").rmdir()
    went_back = {"event": "went back", "step": 1, "from": "step-00000002"}
    assert of(folder).load(*trained(0)) == Progress(1, 0.5, [{"event": "test"}, went_back])


def test_the_only_checkpoint_says_that_a_run_must_begin_again(trained: Callable[[int], State], tmp_path: Path) -> None:
    of(tmp_path).save(Progress(5), *trained(1))
    flip(tmp_path / "step-00000005/__0_0.distcp")
    with pytest.raises(Failure, match="Remove that folder to start again"):
        of(tmp_path).load(*trained(0))


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
        of(folder, Identity({**IDENTITY.facts, **facts})).load(*trained(0))
    (problem,) = error.value.problems
    assert (problem.key, problem.value) == (key, value)
    assert "was" in problem.problem and "--out" in problem.mend and error.value.exit_code == 2


def test_all_changed_keys_are_told_and_which_of_them_are_refused(trained: Callable[[int], State], folder: Path) -> None:
    now = Identity({"seed": 8, "optimizer.peak_learning_rate": 0.02, "torch": "2"}, {"ranks": 4, "train.keep": 2})
    with pytest.raises(UserError) as error:
        of(folder, now).load(*trained(0))
    told = [str(problem) for problem in error.value.problems]
    assert [problem.key for problem in error.value.problems] == ["optimizer.peak_learning_rate", "seed", "ranks"]
    assert all("was 0.01" in told[0] and "would change its losses" in one for one in told[:2])
    assert "was 1" in told[2] and "is free to" in told[2]


def test_what_is_free_to_change_is_told_by_the_events(trained: Callable[[int], State], folder: Path) -> None:
    now = Identity(IDENTITY.facts, {"ranks": 4, "train.keep": 2, "new": 1})
    progress = of(folder, now).load(*trained(0))
    assert progress.events[-1] == {"event": "changed", "step": 2, "values": {"ranks": [1, 4]}}


def first_format(folder: Path, step: int, state: State) -> None:
    """As fox 0.1.0 wrote it."""
    model, optimizer = state
    at = folder / f"step-{step:08d}"
    at.mkdir(parents=True)
    write_safetensors(at / "model.safetensors", model.state_dict())
    moments = {f"{n}/{k}": value for n, p in model.named_parameters() for k, value in optimizer.state[p].items()}
    write_safetensors(at / "optimizer.safetensors", moments)
    hashes = {name: sha256_of(at / name) for name in ("model.safetensors", "optimizer.safetensors")}
    about = {"step": step, "seconds": 1.5, "identity": {**IDENTITY.facts, "ranks": 1}, "sha256": hashes}
    (at / "state.json").write_text(json.dumps(about))


def test_one_of_the_first_format_is_taken_over_to_the_last_bit(trained: Callable[[int], State], tmp_path: Path) -> None:
    first_format(tmp_path, 3, trained(3))
    state, again = trained(0), trained(0)
    assert of(tmp_path).load(*state) == Progress(3, 1.5)
    assert names(tmp_path / "step-00000003") == WHOLE and (tmp_path / "latest").exists()
    assert of(tmp_path).load(*again) == Progress(3, 1.5)
    saved = tensors(trained(3))
    assert all(torch.equal(tensors(loaded)[name], saved[name]) for loaded in (state, again) for name in saved)


def test_a_damaged_one_of_the_first_format_is_refused(trained: Callable[[int], State], tmp_path: Path) -> None:
    first_format(tmp_path, 3, trained(3))
    flip(tmp_path / "step-00000003/optimizer.safetensors")
    with pytest.raises(Failure, match=r"optimizer\.safetensors: damaged"):
        of(tmp_path).load(*trained(0))


def test_one_of_a_newer_fox_is_refused(trained: Callable[[int], State], folder: Path) -> None:
    rewrite(folder / "step-00000002/state.json", format=3)
    with pytest.raises(Failure, match=r"of format 3.*Install a newer one"):
        of(folder).load(*trained(0))


def test_whether_it_is_of_this_run_can_be_asked_before_anything_is_changed(
    trained: Callable[[int], State], folder: Path
) -> None:
    (folder / "latest").write_text("step-00000001\n")
    of(folder, Identity(IDENTITY.facts, {"ranks": 4})).check_identity()
    with pytest.raises(UserError, match=r"step-00000001  seed = 8: was 7 when this run began"):
        of(folder, Identity({**IDENTITY.facts, "seed": 8})).check_identity()
    of(folder / "none").check_identity()
    assert names(folder) == ["latest", "step-00000001", "step-00000002"]
    rewrite(folder / "step-00000001/state.json", identity=5)
    with pytest.raises(Failure, match=r"step-00000001: unreadable"):
        of(folder).check_identity()
