"""Stopping when asked to: SIGTERM (a scheduler wants the machine back) and SIGINT (Ctrl-C) wait for the step under way.

What is asked for within a step is noted, and the loop saves a checkpoint and ends after it. Where there is nothing to save, it
ends at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fox.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """While it is entered, signals to stop are noted. `noted` is the signal's number, or 0.

    A second SIGINT ends even the step under way, unless it is `patient`: torchrun passes on what the terminal has sent already.
    """

    def __init__(self, patient: bool) -> None:
        self.noted = 0
        self._patient = patient
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers, and none is interrupted
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block, a signal ends what is done there."""
        self._at_once = True
        try:
            if self.noted:
                raise self.error(self.noted)
            yield
        finally:
            self._at_once = False

    def error(self, number: int, step: int | None = None) -> BaseException:
        """What to raise for a signal; `step` is that of the checkpoint which was saved for it."""
        if number == signal.SIGINT:
            return KeyboardInterrupt()
        saved = f"saved a checkpoint of step {step}" if step else "the last checkpoint is whole"
        return Stopped(f"asked to end (SIGTERM): {saved}, and the same command goes on from it.")

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._at_once or (number == signal.SIGINT == self.noted and not self._patient):
            raise self.error(number)
        self.noted = self.noted or number
