"""One fault of each kind, injected into a run that is trained through the command line; bench/soak.py injects fifty."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "bench/soak.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_fault_of_any_kind_changes_a_bit_of_a_run(tmp_path: Path) -> None:
    told = tmp_path / "soak.json"
    done = subprocess.run([sys.executable, SOAK, "--quick", "--json", told], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    soak = json.loads(told.read_text())
    assert soak["lost"] == [] and len({fault["kind"] for fault in soak["faults"]}) == len(soak["faults"]) == 7
