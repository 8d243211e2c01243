"""A run that was killed while it trained, for tests of how it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.journey.micro_run import write_world
from tests.unit.runs.killed_run import train_and_be_killed


@pytest.fixture(scope="session")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the micro recipe and such a run. Do not change it."""
    folder = write_world(tmp_path_factory.mktemp("killed") / "world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_and_be_killed()
    return folder


@pytest.fixture
def in_killed(killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, to be changed, as the working folder."""
    monkeypatch.chdir(shutil.copytree(killed, tmp_path / "world"))
