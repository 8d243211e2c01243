"""How a run's last command ended, as a script finds it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fox.artifacts import locked
from fox.errors import Failure, Stopped, UserError
from fox.runs.outcome import outcome_written, remove_outcome, write_outcome


def told(folder: Path) -> int:
    return json.loads((folder / "outcome.json").read_text())["exit_code"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (Stopped("asked to end"), 75),
        (Failure("the disk is full"), 1),
        (UserError("key", problem="is wrong"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(75), 75),
        (ValueError("a mistake of ours"), 1),
    ],
)
def test_the_outcome_is_the_exit_code(tmp_path: Path, error: BaseException | None, code: int) -> None:
    def end() -> None:
        with outcome_written(tmp_path):
            with locked(tmp_path):
                remove_outcome(tmp_path)
                assert not (tmp_path / "outcome.json").exists()
            if error:
                raise error

    for _ in range(2):
        if error:
            with pytest.raises(type(error)):
                end()
        else:
            end()
        assert told(tmp_path) == code


@pytest.mark.parametrize("take", [lambda lock: None, lambda lock: lock.write_text(f"{os.getpid()}1")])
def test_what_this_process_has_not_held_it_says_nothing_of(tmp_path: Path, take: Callable[[Path], object]) -> None:
    take(tmp_path / "lock")
    write_outcome(tmp_path, 75)
    assert not (tmp_path / "outcome.json").exists()
