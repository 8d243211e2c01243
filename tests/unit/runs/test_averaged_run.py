"""A run whose model is to be the mean of late checkpoints: whether it is, and what is on record of it and of the last weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fox.model.directory import load_model
from fox.recipe import load_recipe
from fox.runs.folder import Run
from fox.runs.pipeline import do_steps
from fox.train.averaging import mean_weights
from fox.train.checkpoint import name_of, read_weights
from tests.journey.micro_run import write_world


def averaged(world: Path, wanted: int) -> tuple[Run, str]:
    """The micro run without its tuning, with a checkpoint of each of its 18 steps; and what it said. Its warm-up takes 4 steps."""
    page = (world / "micro.toml").read_text(encoding="utf-8").partition("[tune]")[0]
    (world / "untuned.toml").write_text(f"{page}[eval]\nheldout_tokens = 600\n", encoding="utf-8")
    words = ["train.max_epochs=100", "train.checkpoint_every_steps=1", f"train.average_checkpoints={wanted}"]
    said = io.StringIO()
    steps = ["tokenizer", "data", "pretrain", "eval"]
    run = do_steps(load_recipe("untuned.toml", words), Path("run"), steps, None, Console(file=said, width=500))
    return run, said.getvalue()


def scores_of(run: Run, name: str) -> dict[str, Any]:
    path = run.folder / "pretrain/heldout" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["bits_per_byte"]


@pytest.mark.parametrize(("wanted", "is_taken"), [(14, False), (1, True)])
def test_a_mean_that_is_worse_than_the_last_weights_is_told_and_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, is_taken: bool
) -> None:
    """All 14 checkpoints after the warm-up lie far back in so short a run; a mean of one is the last weights."""
    world = write_world(tmp_path / "world")
    monkeypatch.chdir(world)
    run, said = averaged(world, wanted)
    facts = run.needs("pretrain")["facts"]
    steps = list(range(19 - wanted, 19))
    assert (facts["averaged_steps"], facts["model_is_averaged"]) == (steps, is_taken)
    assert f"the mean of the checkpoints of steps {', '.join(map(str, steps))} needs" in said
    assert ("these stay the model" in said) is not is_taken
    model, _ = load_model(run.folder / "model")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    folder = run.folder / "pretrain/checkpoints"
    taken = mean_weights(read_weights(folder / name_of(step), shapes) for step in (steps if is_taken else [18]))
    assert all(torch.equal(tensor, taken[name]) for name, tensor in model.state_dict().items())
    results = json.loads((run.folder / "eval/results.json").read_text(encoding="utf-8"))["bits_per_byte"]
    mean, last = scores_of(run, "base"), scores_of(run, "last")
    told = {"last": last, "base": mean} if is_taken else {"averaged": mean, "base": last}
    assert results == {"short": scores_of(run, "short"), "longer": scores_of(run, "longer"), **told}
