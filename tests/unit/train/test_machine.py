"""What a machine tells of itself."""

from __future__ import annotations

import pytest
import torch

from fox.train import machine
from fox.train.machine import free_bytes_of_rank


@pytest.mark.parametrize(("ranks", "share"), [(None, 1200), ("1", 1200), ("3", 400)])
def test_the_ranks_of_a_machine_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, ranks: str | None, share: int
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(machine, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 1200)
    assert free_bytes_of_rank() == share
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: None)
    assert free_bytes_of_rank() is None


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(machine, "device", lambda: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: {1: (700, 800)}[where.index])
    assert free_bytes_of_rank() == 700
