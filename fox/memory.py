"""How much memory there is."""

from __future__ import annotations

import os
from pathlib import Path


def machine_bytes() -> int:
    """All memory of this machine, or of what a container may use of it; 0 where neither is told."""
    try:
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        physical = 0
    try:
        allowed = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return physical
    return min(physical, allowed) if physical else allowed
