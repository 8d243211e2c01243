"""What tests of hostile files share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fox.errors import UserError

A_SECOND = 2.0  # of the processor, and one more: machines are shared. What waits without working is ended by the test's timeout.
LITTLE = 256 << 20


@pytest.fixture
def refused() -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """`with refused(MESSAGE):` a UserError that matches MESSAGE, within a second, in little memory, and fit for a terminal."""

    @contextlib.contextmanager
    def check(message: str) -> Iterator[None]:
        before, start = _forget_the_peak(), time.process_time()
        with pytest.raises(UserError, match=message) as caught:
            yield
        seconds = time.process_time() - start
        assert seconds < A_SECOND
        assert _peak_bytes() - before < LITTLE
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 2000

    return check


def _forget_the_peak() -> int:
    """Bytes of memory in use, from which the peak is counted anew (proc(5): clear_refs)."""
    with contextlib.suppress(OSError):  # some containers forbid it: the peak is then the process's, and never grows
        Path("/proc/self/clear_refs").write_text("5")
    return _peak_bytes()


def _peak_bytes() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) << 10
