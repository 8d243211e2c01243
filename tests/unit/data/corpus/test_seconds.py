"""The time of a corpus' blocks: of all tasks, in the order of the work, and of whatever datatrove writes today."""

from __future__ import annotations

import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from fox.data.corpus.seconds import seconds_of

NAP_S = 0.02


class Naps(PipelineStep):
    """Takes a time that is known."""

    type = "Test"

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        super().__init__()
        self._seconds = seconds

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[int]:
        for item in data if data is not None else range(2):
            with self.track_time():
                time.sleep(self._seconds)
            yield item


def do(folder: Path, blocks: list[PipelineStep], tasks: int) -> None:
    for rank in range(tasks):
        executor = LocalPipelineExecutor(deepcopy(blocks), tasks=tasks, logging_dir=str(folder))
        executor._run_for_rank(rank, local_rank=1)


def test_the_tasks_of_a_round_are_added_up_block_by_block(tmp_path: Path) -> None:
    do(tmp_path / "write", [Naps("write", NAP_S)], 1)
    do(tmp_path / "read", [Naps("read", NAP_S), Naps("filter: all", 0)], 3)
    found = seconds_of(tmp_path)
    assert {name: list(blocks) for name, blocks in found.items()} == {
        "read": ["read", "filter: all"],
        "write": ["write"],
    }
    assert list(found) == ["read", "write"]  # the order of the work, not of the folder
    assert 2 * NAP_S <= found["write"]["write"] < 4 * NAP_S
    assert 3 * 2 * NAP_S <= found["read"]["read"] < 2 * 3 * 2 * NAP_S
    assert found["read"]["filter: all"] < NAP_S


class DropsAll(PipelineStep):
    name, type = "drops all", "Test"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[int]:
        yield from (item for item in data if item < 0)


def test_a_block_that_nothing_came_to_took_no_time(tmp_path: Path) -> None:
    do(tmp_path / "read", [Naps("read", NAP_S), DropsAll(), Naps("write", NAP_S)], 2)
    found = seconds_of(tmp_path)["read"]
    assert (found["drops all"], found["write"]) == (0, 0)


def test_what_a_breakdown_left_empty_counts_for_nothing(tmp_path: Path) -> None:
    do(tmp_path / "read", [Naps("read", NAP_S)], 2)
    (tmp_path / "read/stats/00001.json").write_bytes(b"")
    assert 2 * NAP_S <= seconds_of(tmp_path)["read"]["read"] < 4 * NAP_S


def test_a_round_without_tasks_is_not_told_and_an_unknown_one_is_our_bug(tmp_path: Path) -> None:
    (tmp_path / "verify").mkdir()
    assert seconds_of(tmp_path) == {}
    (tmp_path / "another").mkdir()
    with pytest.raises(AssertionError, match="in order"):
        seconds_of(tmp_path)
