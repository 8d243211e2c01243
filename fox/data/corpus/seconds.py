"""Where the time of a corpus went: the seconds of each block, of all tasks together.

datatrove keeps a file for each task that is done, with the time of each step of its pipeline. They go with the folder that the corpus is
made in, so their sums are kept among the facts of the step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BlockSeconds = dict[str, float]
"""By the name of a block, in the order of the pipeline."""

ROUNDS = ("read", "duplicates", "shingles", "verify", "write", "sample", "score", "move the best")
"""In the order in which they are done: from the second on where duplicates are looked for, the last three where documents are ranked."""


def seconds_of(executor: Path) -> dict[str, BlockSeconds]:
    """For each round that was done in the executor's folder, and each of its blocks, the seconds of all tasks together.

    They are seconds of a clock, not of a processor: what a task waits for counts, too, and it counts for more on a machine that has more
    workers than cores. A task that was lost and done again counts once. What is between the blocks, such as starting processes, is nobody's.
    """
    assert {path.name for path in executor.iterdir()} <= set(ROUNDS), "a round that nobody has put in order"
    found = {name: _of_round(executor / name / "stats") for name in ROUNDS}
    return {name: blocks for name, blocks in found.items() if blocks}


def _of_round(folder: Path) -> BlockSeconds:
    totals: BlockSeconds = {}
    for path in sorted(folder.glob("*.json")):
        for block in _blocks(path):
            name = block["name"].partition(": ")[2]  # datatrove puts a block's type before its name
            told = block["time_stats"]  # a number alone, 0, of a block that no document has come to
            totals[name] = totals.get(name, 0.0) + (told["total"] if isinstance(told, dict) else told)
    return {name: round(seconds, 3) for name, seconds in totals.items()}


def _blocks(path: Path) -> list[dict[str, Any]]:
    """What datatrove keeps of a task's blocks; nothing where the machine broke down before that was on its disk: the corpus is whole without it."""
    try:
        return list(json.loads(path.read_bytes()))
    except ValueError:
        return []
