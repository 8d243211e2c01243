from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.journey.micro_run import fox, undo, write_world


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with the micro recipe and its text, and no run yet."""
    return write_world(tmp_path / "world")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole run in runs/micro. Do not change it."""
    folder = write_world(tmp_path_factory.mktemp("finished") / "world")
    fox(folder, "run", "micro.toml")
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(finished, tmp_path / "copied")


@pytest.fixture
def untrained(copied: Path) -> Path:
    """The same with nothing left of pre-training and of what follows it."""
    undo(copied / "runs/micro", "pretrain")
    return copied


@pytest.fixture
def untuned(copied: Path) -> Path:
    """The same with a base model and nothing after it."""
    undo(copied / "runs/micro", "tune")
    return copied
