"""What the steps of a run tell while they work."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from fox.runs.steps import _pack
from tests.unit.train.micro_training import recipe_of, shard_of


def test_packing_tells_of_a_mixture_that_a_short_stage_cannot_give(tmp_path: Path) -> None:
    stage = {"tokens": 512, "chunk_length": 64, "rows": 2, "batch_tokens": 256, "mix": {"a": 0.55, "c": 0.45}}
    recipe = recipe_of(source={"a": {"path": "a"}, "c": {"path": "c"}}, stage={"only": stage}, tune=None)
    shards = {name: shard_of(tmp_path / f"{name}.ds", [40] * 20) for name in ("a", "c")}
    said = io.StringIO()
    _pack(recipe, recipe.stage, shards, tmp_path, Console(file=said))
    assert "warning: stage.only.mix: a gets 50.0 % of the tokens, and not 55.0 %: the stage has 8 rows of 64" in (
        said.getvalue()
    )
