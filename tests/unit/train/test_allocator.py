"""Freed memory is kept: a step like the last one costs few page faults."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fox.train.allocator import keep_freed_memory

COUNT_FAULTS = """
import resource, statistics, sys, torch
from fox.train.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(3)])
rows = torch.randn(1 << 15, 256)
of_turns = []
for turn in range(9):
    before = faults()
    model(rows).square().mean().backward()
    of_turns.append(faults() - before)
print(int(statistics.median(of_turns[2:])))  # now and then one finds its memory in other pieces than the last one left
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_step_in_kept_memory_costs_few_page_faults() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    as_it_is = faults("as it is")
    assert as_it_is > 20_000  # a page of 4 KB each: what the setting is against
    assert faults("kept") < as_it_is / 4


@pytest.mark.parametrize(
    ("most", "asked"), [(1 << 30, [1 << 30]), (32 << 20, [1 << 30, 32 << 20]), (0, [1 << 30, 32 << 20])]
)
def test_a_threshold_that_is_refused_is_not_frozen(
    most: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before glibc 2.35 the mapping threshold could be half a heap's size at most."""
    calls: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        calls.append((name, value))
        return int(name != -3 or value <= most)

    library = SimpleNamespace(mallopt=mallopt, gnu_get_libc_version=None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    monkeypatch.setattr(sys, "platform", "linux")
    assert keep_freed_memory() is (most > 0)
    assert [value for name, value in calls if name == -3] == asked
    assert (len(calls) > len(asked)) is (most > 0)
