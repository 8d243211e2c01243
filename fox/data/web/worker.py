"""The process that reads strangers' pages, for reader.py: a line of JSON and a page in, a line of JSON out.

    python -m fox.data.web.worker LIMITS

A page that takes more processor time or memory than it may ends the process, wherever in a library that is; the reader starts another.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

from fox.data.quarantine import BadRecord, excerpt
from fox.data.web.charset import decoded
from fox.data.web.extract import Extract, extract

READY = b"ready\n"

OUT_OF_MEMORY = 3
"""The exit code where a page took more memory than it may."""


def main() -> None:
    """Answer until there are no more pages."""
    limits = json.loads(sys.argv[1])
    _read(b"<p>a</p>", None, True)  # loads all that is needed, before there are limits
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    least = limits["memory_bytes"] if most == resource.RLIM_INFINITY else min(limits["memory_bytes"], most)
    resource.setrlimit(resource.RLIMIT_AS, (least, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whoever started us may have ignored or blocked it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the reader's; it closes our input
    pages, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    answers.write(READY)
    answers.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)  # a library that prints must not get between the answers
    os.dup2(nothing, 2)  # until here it told why we don't start
    try:
        for line in pages:
            request = json.loads(line)
            content = pages.read(request["bytes"])
            signal.setitimer(signal.ITIMER_PROF, limits["processor_s"])
            answer = _answer(content, request["charset"], request["is_html"])
            signal.setitimer(signal.ITIMER_PROF, 0)
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BrokenPipeError:  # nobody is there to listen
        os._exit(0)


def _answer(content: bytes, charset: str | None, is_html: bool) -> dict[str, Any]:
    try:
        return _read(content, charset, is_html)._asdict()
    except BadRecord as bad:
        return {"bad": bad.reason, "evidence": excerpt(bad.evidence)}


def _read(content: bytes, charset: str | None, is_html: bool) -> Extract:
    text = decoded(content, charset, is_html=is_html)
    return extract(text) if is_html else Extract(text.replace("\r\n", "\n").replace("\r", "\n"), "", "", "")


if __name__ == "__main__":
    main()
