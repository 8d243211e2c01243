"""How much memory there is, and how much of it is free: of the machine, and of what the control groups leave of it.

A container, a Slurm job's step or a service may each take up to a limit of its own, and lies in groups that have theirs. Both
versions of control groups are read: v2 (cgroup-v2.rst of the kernel's manual) and v1 (cgroup-v1/memory.rst).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC, SYS = Path("/proc"), Path("/sys")
_NO_LIMIT = 1 << 60
"""v2 says "max" where there is no limit, v1 a number that no machine has."""


def machine_bytes(proc: Path = PROC, sys: Path = SYS) -> int:
    """All memory of this machine, or of what the groups of this process may use of it; 0 where neither is told."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        physical = 0
    limits = [limit for group in _groups(proc, sys) if (limit := group.limit()) is not None]
    return min([*limits, *([physical] if physical else [])], default=0)


def free_memory_bytes(proc: Path = PROC, sys: Path = SYS) -> int | None:
    """The memory that this process may still take before others must give theirs up; None where the system does not tell."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    return min([free, *(left for group in _groups(proc, sys) if (left := group.left()) is not None)])


@dataclass(frozen=True)
class _Group:
    """A folder of a control group, and how its version names what is in it. `given_up` are lines of memory.stat: what is only
    kept of files that were read, which the kernel gives up before it refuses anything, so that it counts as free (as in MemAvailable)."""

    folder: Path
    limit_file: str
    taken_file: str
    given_up: tuple[str, ...]

    def limit(self) -> int | None:
        try:
            limit = int((self.folder / self.limit_file).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            return None
        return limit if limit < _NO_LIMIT else None

    def left(self) -> int | None:
        """What the limit leaves; None where there is none."""
        limit = self.limit()
        if limit is None:
            return None
        try:
            taken = int((self.folder / self.taken_file).read_text())
            stat = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
            return max(0, limit - taken + sum(int(stat.get(name, 0)) for name in self.given_up))
        except (OSError, ValueError):
            return None


def _groups(proc: Path, sys: Path) -> Iterator[_Group]:
    """The groups that this process is in: its own, and all those above it.

    /proc/self/cgroup may name a path of the machine that a container does not see: then what there is of it is its root.
    """
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inside = [] if ".." in Path(path).parts else [part for part in path.split("/") if part]
        for depth in range(len(inside), -1, -1):
            if not controllers:
                folder = (sys / "fs/cgroup").joinpath(*inside[:depth])
                yield _Group(
                    folder, "memory.max", "memory.current", ("inactive_file", "active_file", "slab_reclaimable")
                )
            elif "memory" in controllers.split(","):
                folder = (sys / "fs/cgroup/memory").joinpath(*inside[:depth])
                yield _Group(
                    folder,
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    ("total_inactive_file", "total_active_file"),
                )
