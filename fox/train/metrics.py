"""metrics.jsonl: what every step of a training run was, a row a step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fox.artifacts import disk_failures, write_atomically
from fox.errors import Failure


class Metrics:
    """The rows of the steps that are done. Those of steps that a kill has undone are dropped when the run goes on."""

    def __init__(self, path: Path, steps_done: int) -> None:
        rows = path.read_bytes().splitlines(keepends=True)[:steps_done] if path.exists() else []
        if len(rows) < steps_done:
            raise Failure(
                f"{path}: has {len(rows)} rows, and the checkpoint is of step {steps_done}. Put the rows back, "
                "start another run with --out, or train again with --redo pretrain (of tuning: --redo tune)."
            )
        write_atomically(path, b"".join(rows))
        self._path = path

    def add(self, row: dict[str, Any]) -> None:
        with disk_failures(self._path), self._path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")

    def flush(self) -> None:
        """Onto the disk, before a checkpoint says that these steps are done."""
        with disk_failures(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())

    def lines(self) -> list[bytes]:
        """Of the steps that are done."""
        return self._path.read_bytes().splitlines()

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines, read."""
        return map(json.loads, self.lines())

    def newest(self, count: int) -> list[dict[str, Any]]:
        """The last so many rows, or all where there are fewer."""
        lines = self.lines()
        return [json.loads(line) for line in lines[max(0, len(lines) - count) :]]

    def last_loss(self) -> float:
        """Of the last step that was not passed over."""
        return next(
            (loss for line in reversed(self.lines()) if (loss := json.loads(line).get("loss")) is not None), math.nan
        )
