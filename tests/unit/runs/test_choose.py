"""What `fox plan` takes of this machine: its memory for a proposal, and how its speed is timed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fox.runs.choose import Wish, propose_for
from fox.train import machine

QUIET = Console(quiet=True)


def proposed_parameters(wish: Wish) -> int:
    return int(json.loads(propose_for(None, "3000d", wish, None, True, QUIET))["parameters"])


def test_a_proposal_is_for_the_memory_that_is_free_or_for_that_of_the_gpu_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Wish(tokens_per_second=3000)
    parameters = []
    for free_gb in (4, 1000):
        monkeypatch.setattr(machine, "free_memory_bytes", lambda free_gb=free_gb: free_gb * 10**9)
        parameters.append(proposed_parameters(here))
    assert 16 * parameters[0] < 4e9 < 16 * parameters[1], "16 bytes a parameter"
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 4 * 10**9)
    of_gpu = proposed_parameters(Wish(tokens_per_second=3000, gpu="h100-80gb"))
    assert of_gpu > parameters[0]
