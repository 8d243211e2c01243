"""The micro world with a run whose pre-training was killed in its fifth step, in the working folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from fox.recipe import LoadedRecipe, load_recipe
from fox.runs.data_steps import open_shards
from fox.runs.folder import flat
from fox.runs.pipeline import do_steps
from fox.runs.steps import pretrain_inputs
from fox.tokenizer import Tokenizer
from fox.train.stages import new_model, pretrain
from tests.unit.train.test_loop import Stop, StoppingMeter

RUN = Path("run")
QUIET = Console(quiet=True)


def recipe(*overrides: str) -> LoadedRecipe:
    return load_recipe("micro.toml", ["stage.short.rows=auto", *overrides])


def train_and_be_killed() -> None:
    run = do_steps(recipe(), RUN, ["tokenizer", "data"], None, QUIET)
    size = Tokenizer.load(RUN / "tokenizer").vocab_size
    model, shards = new_model(run.recipe, size), open_shards(run, "train", size)
    made_of, meter = flat(pretrain_inputs(run)), StoppingMeter(5 * 256)
    with pytest.raises(Stop):
        pretrain(run.recipe, model, shards, RUN / "pretrain", made_of, meter, lambda *_: None)


def go_on(*overrides: str) -> None:
    do_steps(recipe(*overrides), RUN, ["pretrain"], None, QUIET)
