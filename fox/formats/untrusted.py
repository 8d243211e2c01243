"""Open and read files that anybody may have made: regular ones alone, and no more of them than is asked for.

A pipe, a device or a socket under a model file's name would be waited for, or read, without end. Links are followed: the
Hugging Face hub's own cache is made of them, and what they lead to is held to the same rules.
"""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import Any


def open_untrusted(path: Path) -> io.BufferedReader:
    """The file at `path`. Raises OSError where there is none or it is no regular file, ValueError for a name that none can have."""
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # not blocking: nobody may be writing into a pipe
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        return open(descriptor, "rb")  # noqa: PTH123 (a descriptor is no path)
    except BaseException:
        os.close(descriptor)
        raise


def read_untrusted(path: Path, largest: int) -> bytes:
    """All of a file. Raises as `open_untrusted` does, and ValueError where it has more than `largest` bytes."""
    with open_untrusted(path) as file:
        if os.fstat(file.fileno()).st_size <= largest:
            content = file.read(largest + 1)  # it may have grown
            if len(content) <= largest:
                return content
    raise ValueError(f"it is larger than {largest:,} bytes")


def read_untrusted_json(path: Path, largest: int) -> Any:
    """What a JSON file says. Raises as `read_untrusted` does; ValueError too where it is no JSON, or is nested too deeply."""
    try:
        return json.loads(read_untrusted(path, largest).decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
