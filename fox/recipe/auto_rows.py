"""`rows = "auto"`: who reads a page puts a number in its place, and who runs it, fits that to the memory there is."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from fox.recipe.keys import KeyPath
from fox.recipe.stage import Stage

AUTO = "auto"


def take_up_rows(page: dict[str, Any]) -> list[KeyPath]:
    """Write 1 wherever the page has rows = "auto", which every page can be checked with; the keys of the stages where that was.

    Weights in bf16 alone leave no choice: a step is one pass, so its rows are put there, and there is nothing to fit.
    """
    train = page.get("train")
    one_pass = isinstance(train, dict) and train.get("precision") == "bf16-weights"
    stages = page.get("stage")
    tables: dict[KeyPath, Any] = (
        {("stage", name): table for name, table in stages.items()} if isinstance(stages, dict) else {}
    )
    tables[("tune",)] = page.get("tune")
    left = []
    for key, table in tables.items():
        if isinstance(table, dict) and table.get("rows") == AUTO:
            table["rows"] = _rows_of_a_step(table) if one_pass else 1
            if not one_pass:
                left.append(key)
    return left


def _rows_of_a_step(table: dict[str, Any]) -> int:
    named = {name: table[name] for name in Stage.model_fields if name in table}
    try:
        stage = Stage.model_validate({**named, "rows": 1})
        return max(1, stage.batch_tokens // stage.row_length)
    except (ValidationError, KeyError):  # which the check of the page tells
        return 1
