from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.report.made_up_run import write_whole_run


@pytest.fixture(scope="package")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Do not change it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    write_whole_run(folder)
    return folder
