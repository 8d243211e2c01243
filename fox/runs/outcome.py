"""How the last command that trained in a run ended: RUN/outcome.json, for scripts that decide whether to start it again.

torchrun's own exit code is 1 whatever its processes' were. The file is removed when a command takes the run's folder, and
written when it ends, so there is none while it works, and none where it was killed.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from fox.artifacts import remove_at_once, write_json
from fox.errors import FoxError

_NAME = "outcome.json"


def remove_outcome(folder: Path) -> None:
    """For the holder of the folder's lock."""
    remove_at_once([folder / _NAME])


def write_outcome(folder: Path, exit_code: int) -> None:
    """Say how this process ends, where it was the last to hold the folder. A signal to stop comes too late to disturb it."""
    if not _is_ours(folder):
        return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with _undisturbed(), contextlib.suppress(FoxError):  # on a full disk there is none, as after a kill
        write_json(folder / _NAME, {"exit_code": exit_code, "at": now})


@contextlib.contextmanager
def outcome_written(folder: Path) -> Iterator[None]:
    """Write how the block ends, by the exit code that its end will have."""
    try:
        yield
    except BaseException as error:
        write_outcome(folder, _exit_code(error))
        raise
    write_outcome(folder, 0)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        return error.code or 0
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, FoxError) else 1


def _is_ours(folder: Path) -> bool:
    """Who takes the lock leaves its number in it: another's run, and a folder that is no run, are not written to."""
    try:
        return (folder / "lock").read_text(encoding="utf-8") == str(os.getpid())
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
