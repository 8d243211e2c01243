"""A run's record: what happened to it besides its steps, in the order in which it did.

Each checkpoint carries it as it was then; events.jsonl has all of it, and only grows. An event is on the disk before what it
tells of is done, so that a run which is killed knows of a roll-back though its checkpoint is older than that; but a stop is on
record once it is saved, first in its own checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fox.artifacts import write_atomically
from fox.errors import Failure

Event = dict[str, Any]
"""Its kind is in `event`, and in `step` how many steps were done. Numbers are finite."""

_NAME = "events.jsonl"


def read_events(folder: Path) -> list[Event]:
    """All of the record, oldest first. Raises Failure where it can't be read."""
    path = folder / _NAME
    try:
        events = [json.loads(line) for line in path.read_bytes().splitlines()]
        if all(isinstance(event["event"], str) and type(event["step"]) is int for event in events):
            return events
        reason = "a line is no event"
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error)
    raise Failure(f"{path}: unreadable ({reason}). Put it back as it was: what is to be passed over is in it.")


def write_events(folder: Path, events: list[Event]) -> None:
    """The whole record, which is on the disk when this returns."""
    write_atomically(folder / _NAME, "".join(f"{json.dumps(event)}\n" for event in events))
