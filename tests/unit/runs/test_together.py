"""What is said before any work where so many processes can't train a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fox.artifacts import locked
from fox.errors import Failure, Stopped, UserError
from fox.runs import together
from fox.runs.together import _memory_told, _told_once, check_ranks, num_ranks
from fox.train.team import Ended, ManyRanks
from tests.unit.train.micro_training import recipe_of

EVEN = {"tokens": 4096, "chunk_length": 16, "rows": 4, "batch_tokens": 512, "mix": {"text": 1.0}}

TUNE = {
    "tokens": 1024,
    "chunk_length": 64,
    "rows": 2,
    "batch_tokens": 256,
    "mix": {"chat": 1.0},
    "optimizer": {"peak_learning_rate": 1e-3},
    "schedule": {"warmup_tokens": 0, "decay_tokens": 512},
}


def told(ranks: int, **other: Any) -> str:
    with pytest.raises(UserError) as error:
        check_ranks(recipe_of(**{"stage": {"only": EVEN}, "tune": None, **other}), ranks, ["pretrain", "tune"])
    return str(error.value)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_steps_that_divide_among_the_ranks_are_fine(ranks: int) -> None:
    ramp = {"start": 512, "tokens": 2048}
    stage = {**EVEN, "batch_tokens": 1024, "batch_ramp": ramp}
    check_ranks(recipe_of(stage={"only": stage}, tune=None), ranks, ["pretrain"])


def test_batches_that_do_not_divide_are_told_with_the_nearest_that_do() -> None:
    said = told(3)
    assert "stage.only.batch_tokens = 512: is no multiple of ranks x rows x chunk length = 3 x 4 x 16 = 192" in said
    assert "-o stage.only.batch_tokens=576" in said
    check_ranks(recipe_of(stage={"only": {**EVEN, "batch_tokens": 576}}, tune=None), 3, ["pretrain"])


def test_the_first_step_of_a_ramp_must_divide_too() -> None:
    ramp = {"start": 64, "tokens": 2048}
    said = told(2, stage={"only": {**EVEN, "batch_ramp": ramp}})
    assert "stage.only.batch_ramp.start = 64: is no multiple" in said and "-o stage.only.batch_ramp.start=128" in said
    stage = {**EVEN, "batch_ramp": {**ramp, "start": 128}}
    recipe = recipe_of(stage={"only": stage}, tune=None)
    check_ranks(recipe, 2, ["pretrain"])
    only = recipe.stage["only"]
    assert {only.batch_tokens_of(step) % 128 for step in range(only.steps)} == {0}


def test_only_what_is_trained_is_looked_at() -> None:
    check_ranks(recipe_of(stage={"only": EVEN}, tune=None), 3, ["tokenizer", "data"])


def test_neighbours_that_share_heads_share_rows() -> None:
    check_ranks(recipe_of(stage={"only": EVEN}, tune=None, train={"tensor_parallel": 2}), 16, ["pretrain"])
    assert "train.tensor_parallel = 2: does not divide the 3 processes" in told(3, train={"tensor_parallel": 2})
    assert "model.num_key_value_heads = 2" in told(4, train={"tensor_parallel": 4})


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"train": {"precision": "bf16-weights"}}, "train.precision"),
        ({"optimizer": {"peak_learning_rate": 1e-2, "name": "adafactor"}}, "optimizer.name = 'adafactor'"),
        (
            {"train": {"tensor_parallel": 2}, "optimizer": {"peak_learning_rate": 1e-2, "name": "muon"}},
            "optimizer.name = 'muon': needs whole heads",
        ),
        ({"tune": {**TUNE, "optimizer": {"peak_learning_rate": 1e-3, "name": "adafactor"}}}, "tune.optimizer.name ="),
    ],
)
def test_optimisers_of_whole_weights_are_refused(tables: dict[str, Any], said: str) -> None:
    assert said in told(2, **tables)
    check_ranks(recipe_of(**{"stage": {"only": EVEN}, "tune": None, **tables, "train": {}}), 1, ["pretrain"])


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("told_by", "ranks"), [({}, 1), ({"WORLD_SIZE": "1"}, 1), ({"WORLD_SIZE": "1", "RANK": "0"}, 1), (TORCHRUN, 2)]
)
def test_the_environment_says_how_many_train(
    variables: pytest.MonkeyPatch, told_by: dict[str, str], ranks: int
) -> None:
    for name, value in told_by.items():
        variables.setenv(name, value)
    assert num_ranks() == ranks


@pytest.mark.parametrize(
    ("told_by", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two': is no number of processes"),
        ({**TORCHRUN, "WORLD_SIZE": "-1"}, "WORLD_SIZE = '-1'"),
        ({**TORCHRUN, "RANK": "2"}, "RANK = '2': is none of 0 to 1"),
        ({**TORCHRUN, "RANK": ""}, "RANK = ''"),
        ({"WORLD_SIZE": "2"}, "RANK: is not set"),
        ({"RANK": "1"}, "WORLD_SIZE: is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR: is not set"),
    ],
)
def test_an_environment_that_says_too_little_is_told(
    variables: pytest.MonkeyPatch, told_by: dict[str, str], said: str
) -> None:
    for name, value in told_by.items():
        variables.setenv(name, value)
    with pytest.raises(UserError, match="torchrun") as error:
        num_ranks()
    assert str(error.value).startswith(said)


@pytest.fixture
def team(monkeypatch: pytest.MonkeyPatch) -> ManyRanks:
    """The leader of two, with a store of their own and no connection."""
    monkeypatch.setattr(together, "_TELLS_WITHIN_S", 0)
    leader = ManyRanks.__new__(ManyRanks)
    leader.rank, leader.size, leader._store = 0, 2, dist.HashStore()
    return leader


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:554] Connection closed by peer [::1]:4242"),
        dist.DistBackendError("NCCL error: remote process exited"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
        dist.DistStoreError("wait timeout"),
    ],
)
def test_a_process_that_has_gone_is_told_as_that(team: ManyRanks, tmp_path: Path, error: Exception) -> None:
    with pytest.raises(Failure, match="another process of this run has ended"), _told_once(team, tmp_path):
        raise error


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), OSError("no file's")]
)
def test_a_mistake_of_ours_is_no_process_that_has_gone(team: ManyRanks, tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as met, _told_once(team, tmp_path):
        raise error
    assert met.value is error and team.exit_code_told() == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("fox_attend: can't allocate memory"),
    ],
)
def test_too_little_memory_is_told_with_what_takes_less(team: ManyRanks, tmp_path: Path, error: Exception) -> None:
    recipe = recipe_of(stage={"only": EVEN}, tune=None)
    with pytest.raises(Failure, match="memory does") as met, _told_once(team, tmp_path), _memory_told(recipe):
        raise error
    assert "-o stage.only.rows=2" in str(met.value) and "-o train.activation_checkpointing=true" in str(met.value)
    assert "more\n" not in str(met.value)


def test_an_error_of_the_disk_is_a_failure_and_who_is_not_first_is_silent(team: ManyRanks, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="at-fault: No such device"), _told_once(team, tmp_path):
        raise OSError(6, "No such device", "at-fault")
    team._store = dist.HashStore()
    team._store.set("fox/told", "1 2")
    with locked(tmp_path), pytest.raises(SystemExit) as end, _told_once(team, tmp_path):
        raise OSError(6, "No such device", "at-fault")
    assert end.value.code == 2
    assert json.loads((tmp_path / "outcome.json").read_text())["exit_code"] == 2  # the other's, before any sleep


@pytest.mark.parametrize(
    ("error", "store"),
    [
        (Stopped("asked to end (SIGTERM): saved"), "nobody has told"),
        (Stopped("asked to end (SIGTERM): saved"), "another has told"),
        (Stopped("asked to end (SIGTERM): saved"), "gone with torchrun"),
        (Ended(75), "another has told"),
        (dist.DistNetworkError("failed to recv, got 0 bytes"), "another has told"),
    ],
)
def test_that_all_are_asked_to_end_is_told_by_the_leader_alone(
    team: ManyRanks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, store: str
) -> None:
    """Whoever heard of it first: torchrun, which is asked too, may end the store before the second one asks who has told."""
    monkeypatch.setattr(together.time, "sleep", lambda seconds: None)
    if store == "another has told":
        team._store.set("fox/told", "1 75")
    elif store == "gone with torchrun":
        monkeypatch.setattr(team, "first_to_tell", gone)
    with pytest.raises(Stopped, match="asked to end"), _told_once(team, tmp_path):
        raise error
    team.rank = 1
    with pytest.raises(SystemExit) as end, _told_once(team, tmp_path):
        raise error
    assert end.value.code == 75


def gone(*_: object) -> object:
    raise dist.DistNetworkError("Broken pipe")
