"""What a training is about to read is hashed: a disk that loses a bit changes neither a file's size nor its time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fox.errors import Failure
from fox.runs.before_training import shards_of, sources_of
from fox.runs.find_rate import find_rate
from fox.runs.folder import Run
from fox.runs.pipeline import do_steps
from tests.unit.runs.killed_run import QUIET, RUN, go_on, recipe

pytestmark = pytest.mark.usefixtures("in_killed")


def turn_bit(path: Path) -> None:
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "name", ["stories.train.ds", "stories.train.ds.index", "chats.train.ds.loss", "stories.heldout.ds"]
)
def test_a_lost_bit_is_found_though_the_time_is_as_it_was(name: str) -> None:
    turn_bit(RUN / "data" / name)
    with pytest.raises(Failure, match=rf"{name}: has changed since `data` made it"):
        go_on()
    assert not (RUN / "manifests/pretrain.json").exists()
    do_steps(recipe(), RUN, ["data"], None, QUIET)  # looks at sizes and times alone


def test_a_search_for_a_rate_finds_it_too() -> None:
    turn_bit(RUN / "data/stories.train.ds")
    with pytest.raises(Failure, match=r"stories.train.ds: has changed since `data` made it"):
        find_rate(recipe(), RUN, 3, 2560, QUIET)


def test_only_what_is_read_is_hashed() -> None:
    run = Run(RUN, recipe())
    assert run.recipe.tune
    of_chats = [f"data/chats.train.ds{ending}" for ending in ("", ".index", ".loss")]
    of_stories = [f"data/stories.train.ds{ending}" for ending in ("", ".index")]
    assert shards_of(run, sources_of(run.recipe, {"tune": run.recipe.tune}), "train") == of_chats
    assert shards_of(run, sources_of(run.recipe, {"short": run.recipe.stage["short"]}), "train") == of_stories
    assert shards_of(run, sources_of(run.recipe, run.recipe.stage), "train") == [*of_chats, *of_stories]
