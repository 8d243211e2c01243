"""How the C library hands out memory while training on a processor."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h: the parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Keep memory that was freed for the next tensor of its size, instead of giving it back; whether that could be set.

    A step frees and asks for the same large tensors again and again. By default glibc maps each anew and gives it back at
    once, so that every page of every activation is cleared by the kernel and faulted in: a fifth of a step's time at 52 M
    weights (LOG.md). Another C library than glibc is left as it is.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
        ctypes.CDLL(None).gnu_get_libc_version  # noqa: B018 (musl has a mallopt that does nothing, and lacks this)
    except (AttributeError, OSError):
        return False
    # Before glibc 2.35 the mapping threshold could be 32 MB at most. Refused altogether, nothing may be set: the other two would
    # freeze that threshold at its first value, and every tensor would be mapped anew for good.
    if not any(mallopt(_MMAP_THRESHOLD, size) == 1 for size in (1 << 30, 32 << 20)):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) == 1 and mallopt(_TOP_PAD, 64 << 20) == 1)
