"""Chat templates, rendered where they can do no harm.

A template is a program, and comes with someone else's model. jinja2's sandbox keeps it from reaching out, but not from
counting for ever or filling the memory, and it can begin with that while it is still being compiled. So every template, our
own too, runs in a process that knows nothing but jinja2 (template_worker.py), under limits that the kernel keeps. Whoever
breaks one is ended, and the next template gets a new process.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from fox.errors import Failure, UserError

PROCESSOR_S = 1.0
"""For a batch, its template's compilation included: milliseconds are usual. Processor time, so that a busy machine is no mistake."""
MEMORY_BYTES = 512 * 2**20
"""Of addresses, Python and jinja2 included, which take about 30 MB. macOS does not keep this limit."""
TEMPLATE_CHARACTERS = 1_000_000
RENDERED_CHARACTERS = 2_000_000
"""How much a template may write in a batch, on top of `RENDERED_TIMES` what it was sent: it costs us memory, too."""
RENDERED_TIMES = 10

_ANSWER_S = 20.0  # on the clock, for a process that is stopped or starved and so uses no processor time
_START_S = 60.0
_BATCH_CHATS, _BATCH_CHARACTERS = 64, 1_000_000
_OUT_OF_MEMORY = 3  # the worker's exit code
_ENVIRONMENT = ("TZ", "TZDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # all that the worker gets to see of ours


def render(
    template: str, shared: dict[str, Any], chats: Sequence[dict[str, Any]], now: datetime | None = None
) -> list[str]:
    """The text that `template` makes of each chat's variables and the `shared` ones (all of them JSON).

    Where it asks for the time, it is told `now`; None is the clock's.
    Raises UserError where it is wrong, refuses, or takes too much time or memory; Failure where no process can be started.
    """
    if len(template) > TEMPLATE_CHARACTERS:
        raise UserError(
            "tokenizer.chat_template",
            problem=f"has {len(template):,} characters, and a template has at most {TEMPLATE_CHARACTERS:,}",
            mend="Take another one: this is none, or broken.",
        )
    return [text for batch in _batches(chats) for text in _render_batch(template, shared, batch, now)]


def _batches(chats: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """The chats as JSON, so many together that the way to the other process costs little, and so few that a second is plenty."""
    batch: list[str] = []
    characters = 0
    for chat in chats:
        written = _as_json(chat)
        if batch and (len(batch) == _BATCH_CHATS or characters + len(written) > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(written)
        characters += len(written)
    if batch:
        yield batch


def _render_batch(template: str, shared: dict[str, Any], batch: list[str], now: datetime | None) -> list[str]:
    global _worker
    most = RENDERED_CHARACTERS + RENDERED_TIMES * sum(map(len, batch))
    told = {"template": template, "shared": shared, "most": most, "now": now.isoformat() if now else None}
    request = f'{_as_json(told)[:-1]},"chats":[{",".join(batch)}]}}\n'
    with _lock:
        if _worker is None or _worker.process.poll() is not None:
            _worker = _Worker()
        try:
            answer = _worker.ask(request.encode("utf-8", "surrogatepass"), most)
        except BaseException:  # Ctrl-C, too: the answer to this request must not become the next one's
            _worker.end()
            _worker = None
            raise
    if "error" in answer:
        _refuse(_printable(answer["error"]))
    texts: list[str] = answer["texts"]
    return texts


_as_json = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


class _Worker:
    """The other process, and the line to it: a request and an answer, each a line of JSON."""

    def __init__(self) -> None:
        """Raises Failure where it does not start."""
        limits = {"processor_s": PROCESSOR_S, "memory_bytes": MEMORY_BYTES, "out_of_memory": _OUT_OF_MEMORY}
        program = Path(__file__).with_name("template_worker.py")
        self._line, theirs = socket.socketpair()
        with theirs:
            try:
                # Without site and our environment: it sees the standard library, jinja2, and no secret. In a session of its
                # own a Ctrl-C on the terminal is not for it; where we are killed, its line ends, and so does it.
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-W", "ignore", str(program), json.dumps(limits), *_library_folders()],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=theirs.fileno(),
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as error:
                self._line.close()
                raise Failure(f"can't start a process to render the chat template in: {error}") from None
        self.end = weakref.finalize(self, _end, self.process, self._line)  # at the latest when Python ends
        try:
            said = self._read_until(b"ready\n", _START_S, 1_000_000)
        except TimeoutError:
            said = f"it is not ready after {_START_S:g} s".encode()
        except BaseException:
            self.end()
            raise
        if not said.endswith(b"ready\n"):
            self.end()
            reason = said.decode(errors="replace").strip().rpartition("\n")[2] or "it ended"
            raise Failure(f"can't start a process to render the chat template in: {_printable(reason)}")

    def ask(self, request: bytes, most_characters: int) -> dict[str, Any]:
        """The answer to a request. Raises UserError where there is none; this worker is of no use then."""
        try:
            self._line.settimeout(_ANSWER_S)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then there is no answer either
                self._line.sendall(request)
            # A character takes at most six bytes in JSON.
            said = self._read_until(b"\n", _ANSWER_S, 6 * most_characters + 1_000_000)
            if said.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(said.decode("utf-8", "surrogatepass"))
                return answer
            code = self.process.wait(_ANSWER_S)  # its line has ended, so it is about to
        except (TimeoutError, subprocess.TimeoutExpired):
            _refuse(f"there is no answer after {_ANSWER_S:g} s", _HARMFUL)
        if code == -signal.SIGPROF:
            _refuse(f"that takes more than {PROCESSOR_S:g} s of processor time", _HARMFUL)
        if code == _OUT_OF_MEMORY:
            _refuse(f"that takes more than {MEMORY_BYTES // 2**20} MB of memory", _HARMFUL)
        _refuse(f"the process that does it ends with code {code}", _HARMFUL)

    def forget(self) -> None:
        """Leave it to the parent of the process that we are: what would end it, ends it there."""
        self.end.detach()
        self._line.close()
        self.process.returncode = 0  # it is no child of ours to wait for

    def _read_until(self, ending: bytes, timeout_s: float, most_bytes: int) -> bytes:
        """What it says up to `ending`, or all where it ends before. Raises TimeoutError where it is too long at it."""
        deadline = time.monotonic() + timeout_s
        said = bytearray()
        while not said.endswith(ending):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or len(said) > most_bytes:  # the worker keeps to its size, unless it is no longer ours
                raise TimeoutError
            self._line.settimeout(left_s)
            try:
                piece = self._line.recv(1 << 20)
            except ConnectionResetError:
                piece = b""
            if not piece:
                break
            said += piece
        return bytes(said)


def _library_folders() -> list[str]:
    """Where jinja2 and the one library that it needs are installed, found without importing them."""
    specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    return list({str(Path(spec.origin).parent.parent): None for spec in specs if spec and spec.origin})


def _end(process: subprocess.Popen[bytes], line: socket.socket) -> None:
    line.close()
    process.kill()
    process.wait()


_HARMFUL = "A chat template takes milliseconds: this one is broken, or meant to harm. Take another one."


def _refuse(reason: str, mend: str = "") -> NoReturn:
    raise UserError("tokenizer.chat_template", problem=f"can't render these messages: {reason}", mend=mend)


def _printable(reason: str) -> str:
    """A template words its own refusal, which is about to be printed: no commands to the terminal."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1] for letter in reason)


_lock = threading.Lock()
_worker: _Worker | None = None


def _after_fork() -> None:
    """A child starts its own: two that write on one line would read each other's chats."""
    global _lock, _worker
    _lock = threading.Lock()  # another thread may have held it, and that one does not live on here
    if _worker is not None:
        _worker.forget()
        _worker = None


os.register_at_fork(after_in_child=_after_fork)
