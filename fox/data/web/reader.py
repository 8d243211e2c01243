"""Pages are read in a process of their own, so that a hostile one costs its limit and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from functools import lru_cache

from fox.data.quarantine import BadRecord
from fox.data.web.extract import Extract

PROCESSOR_S = 5.0
"""Of one page. The largest of ordinary ones takes a tenth of a second."""

MEMORY_BYTES = 4 * 2**30
"""Of the process. A page of the largest record takes half of it."""

_READY, _OUT_OF_MEMORY = b"ready\n", 3  # as worker.py has them, whose libraries this process does without


class PageReader:
    """Reads pages one after another. A worker that a page has ended is started again for the next one."""

    def __init__(self, processor_s: float = PROCESSOR_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limits = json.dumps({"processor_s": processor_s, "memory_bytes": memory_bytes})
        self._too_long = f"takes more than {processor_s:g} s of a processor"
        self._worker: subprocess.Popen[bytes] | None = None

    def read(self, content: bytes, charset: str | None = None, *, is_html: bool = True) -> Extract:
        """The text of a page's bytes, and what the page says of itself; `charset` is its HTTP header's. Raises BadRecord."""
        worker = self._worker or self._start()
        assert worker.stdin and worker.stdout
        request = {"bytes": len(content), "charset": charset, "is_html": is_html}
        try:
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.write(content)
            worker.stdin.flush()
            line = worker.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line.endswith(b"\n"):
            raise BadRecord(self._why_ended(worker), content[:1000])
        answer = json.loads(line)
        if "bad" in answer:
            raise BadRecord(answer["bad"], answer["evidence"])
        return Extract(**answer)

    def _start(self) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", "fox.data.web.worker", self._limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        weakref.finalize(self, _end, worker)
        assert worker.stdout
        if worker.stdout.readline() != _READY:
            raise RuntimeError("the process that reads pages does not start; it has said why")
        self._worker = worker
        return worker

    def _why_ended(self, worker: subprocess.Popen[bytes]) -> str:
        self._worker = None
        code = worker.wait()
        _end(worker)
        if code == -signal.SIGPROF:
            return self._too_long
        return "takes too much memory" if code == _OUT_OF_MEMORY else "can't be read: its reader was ended by it"


def page_reader() -> PageReader:
    """This process's own: a worker's pipes must not be shared with a fork."""
    return _reader_of(os.getpid())


@lru_cache(maxsize=1)
def _reader_of(_: int) -> PageReader:
    return PageReader()


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()
