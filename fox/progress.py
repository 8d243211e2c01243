"""How far a long job is: a bar where someone watches, plain lines where the output goes to a file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

PLAIN_LINE_EVERY_S = 10.0


class Meter:
    """What a job tells while it runs."""

    def __init__(self, label: str, total: int | None, unit: str, start: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.start = self.done = start
        self.began = time.monotonic()

    def advance_to(self, done: int, note: str = "") -> None:
        """So much is done; `note` stands beside it (the loss, the stage)."""
        self.done = done

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.advance_to(self.done + amount, note)

    def tell(self, line: str) -> None:
        """Say a line that stays; "" says nothing."""

    def rate(self) -> float:
        """Units a second, since this process began."""
        return (self.done - self.start) / max(1e-9, time.monotonic() - self.began)

    def close(self) -> None:
        """The job has ended, well or not."""


@contextlib.contextmanager
def meter(label: str, total: int | None, unit: str, start: int = 0, console: Console | None = None) -> Iterator[Meter]:
    """A Meter on standard error: a bar on a terminal, otherwise a line now and then."""
    console = console or Console(stderr=True)
    shown: Meter = (
        _Bar(label, total, unit, start, console) if console.is_terminal else _Lines(label, total, unit, start, console)
    )
    try:
        yield shown
    finally:
        shown.close()


class _Bar(Meter):
    def __init__(self, label: str, total: int | None, unit: str, start: int, console: Console) -> None:
        super().__init__(label, total, unit, start)
        narrow = console.width < 90
        columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}")]
        columns += [BarColumn(bar_width=10 if narrow else 24), _Count(self)]
        columns += [TextColumn("{task.fields[note]}", style="cyan"), TimeRemainingColumn(compact=True)]
        self._progress = Progress(*columns, console=console, transient=False)
        self._note = ""
        self._task = self._progress.add_task(label, total=total, completed=start, note="")
        self._progress.start()

    def advance_to(self, done: int, note: str = "") -> None:
        super().advance_to(done, note)
        if note:
            self._note = note
        self._progress.update(self._task, completed=done, note=self._note)

    def tell(self, line: str) -> None:
        if line:
            self._progress.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class _Count(ProgressColumn):
    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: Task) -> Text:
        total = f"/{in_short(self._meter.total)}" if self._meter.total else ""
        return Text(f"{in_short(self._meter.done)}{total} {self._meter.unit} {in_short(self._meter.rate())}/s")


class _Lines(Meter):
    def __init__(self, label: str, total: int | None, unit: str, start: int, console: Console) -> None:
        super().__init__(label, total, unit, start)
        self._console = console
        self._said = self.began
        self._note = ""

    def advance_to(self, done: int, note: str = "") -> None:
        super().advance_to(done, note)
        self._note = note or self._note
        if time.monotonic() - self._said >= PLAIN_LINE_EVERY_S:
            self._say()

    def tell(self, line: str) -> None:
        if line:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if time.monotonic() - self.began >= 1.0:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        total = f" of {in_short(self.total)}" if self.total else ""
        left = ""
        if self.total and self.done < self.total and self.done > self.start:
            left = f", {(self.total - self.done) / self.rate():.0f} s left"
        note = f", {self._note}" if self._note else ""
        line = f"{self.label}: {in_short(self.done)}{total} {self.unit}, {in_short(self.rate())}/s{note}{left}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def in_short(number: float) -> str:
    """`1.25M` for 1,250,000: three figures and a letter."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}" if isinstance(number, float) else str(number)
