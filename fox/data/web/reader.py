"""Pages are read in a process of their own, so that a hostile one costs its limit and no more."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import fox
from fox.data.quarantine import BadRecord
from fox.data.web.extract import Extract
from fox.data.web.worker import OUT_OF_MEMORY, READY

PROCESSOR_S = 5.0
"""Of one page. The largest of ordinary ones takes a tenth of a second."""

MEMORY_BYTES = 4 * 2**30
"""Of the process. A page of the largest record takes half of it."""

MAX_WAIT_S = 300.0
"""For an answer, where a worker neither ends nor computes: it swaps, or somebody has stopped it."""

_ROOT = str(Path(fox.__file__).parents[1])


class PageReader:
    """Reads pages one after another. A worker that a page has ended is started again for the next one."""

    def __init__(self, processor_s: float = PROCESSOR_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._limits = json.dumps({"processor_s": processor_s, "memory_bytes": memory_bytes})
        self._too_long = f"takes more than {processor_s:g} s of a processor"
        self._worker: subprocess.Popen[bytes] | None = None

    def read(self, content: bytes, charset: str | None = None, *, is_html: bool = True) -> Extract:
        """The text of a page's bytes, and what the page says of itself; `charset` is its HTTP header's. Raises BadRecord."""
        request = json.dumps({"bytes": len(content), "charset": charset, "is_html": is_html}).encode() + b"\n"
        for _ in range(2):  # once more where somebody else ended the worker: the page may have nothing to do with it
            line = self._asked(request, content)
            if line.endswith(b"\n"):
                break
            why = self._why_ended()
            if why:
                raise BadRecord(why, content[:1000])
        else:
            raise BadRecord("can't be read: it ends its reader", content[:1000])
        answer = json.loads(line)
        if "bad" in answer:
            raise BadRecord(answer["bad"], answer["evidence"])
        return Extract(**answer)

    def _asked(self, request: bytes, content: bytes) -> bytes:
        """The worker's answer, without its end where the worker has ended."""
        worker = self._worker or self._start()
        assert worker.stdin and worker.stdout
        try:
            worker.stdin.write(request)
            worker.stdin.write(content)
            worker.stdin.flush()
            if not select.select([worker.stdout], [], [], MAX_WAIT_S)[0]:
                worker.kill()
            return worker.stdout.readline()
        except BrokenPipeError:
            return b""
        except BaseException:  # Ctrl-C: the answer to this page must not be taken for the next one's
            self._worker = None
            _end(worker)
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        paths = [_ROOT, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        safely = "-P"  # nothing is imported from the folder that we are in
        worker = subprocess.Popen(
            [sys.executable, safely, "-m", "fox.data.web.worker", self._limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        weakref.finalize(self, _end, worker)
        assert worker.stdout
        if worker.stdout.readline() != READY:
            raise RuntimeError("the process that reads pages does not start; it has said why")
        self._worker = worker
        return worker

    def _why_ended(self) -> str:
        """What the page did to end its worker; empty where that can't be told."""
        worker, self._worker = self._worker, None
        assert worker
        code = worker.wait()
        _end(worker)
        if code == -signal.SIGPROF:
            return self._too_long
        return "takes too much memory" if code == OUT_OF_MEMORY else ""


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
