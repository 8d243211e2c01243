"""Pre-training and tuning: the same loop, told what to start from and what to learn from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fox.formats.token_shards import Shard
from fox.model import ModelConfig, Transformer
from fox.progress import Meter
from fox.recipe import Recipe
from fox.recipe.schema import Stage
from fox.train.batches import Stream
from fox.train.checkpoint import Identity
from fox.train.curriculum import curriculum
from fox.train.loop import AfterStage, Job, Outcome, train
from fox.train.machine import losses_depend_on, resolve_precision


def new_model(recipe: Recipe, vocab_size: int) -> Transformer:
    """A model of the recipe's shape with its first weights, drawn from the recipe's seed."""
    model = Transformer(ModelConfig.from_recipe(recipe.model, vocab_size))
    model.initialise(torch.Generator().manual_seed(recipe.seed))
    return model


def pretrain(
    recipe: Recipe,
    model: Transformer,
    shards: Mapping[str, Shard],
    folder: Path,
    made_of: dict[str, Any],
    meter: Meter,
    after_stage: AfterStage,
) -> Outcome:
    """Train through the recipe's curriculum, on every token. `made_of` names what the run is made of, for its checkpoints."""
    job = _job(recipe, recipe.stage, shards, folder, made_of, learn_marked_only=False)
    return train(model, job, meter, after_stage)


def tune(
    recipe: Recipe,
    model: Transformer,
    shards: Mapping[str, Shard],
    folder: Path,
    made_of: dict[str, Any],
    meter: Meter,
    after_stage: AfterStage,
) -> Outcome:
    """Train on chats, on the assistant's tokens only."""
    assert recipe.tune
    job = _job(recipe, {"tune": recipe.tune}, shards, folder, made_of, learn_marked_only=True)
    return train(model, job, meter, after_stage)


def total_tokens(stages: Mapping[str, Stage]) -> int:
    """The tokens of all stages, in whole steps."""
    return sum(stage.steps * stage.batch_tokens for stage in stages.values())


def _job(
    recipe: Recipe,
    stages: Mapping[str, Stage],
    shards: Mapping[str, Shard],
    folder: Path,
    made_of: dict[str, Any],
    learn_marked_only: bool,
) -> Job:
    tuning = recipe.tune if learn_marked_only else None
    train_tokens = {name: len(shard.tokens) for name, shard in shards.items()}
    precision = resolve_precision(recipe.train.precision)
    identity = Identity({**made_of, "train.precision": precision, **losses_depend_on()})
    return Job(
        folder=folder,
        orders=curriculum(recipe, stages, train_tokens),
        streams={name: Stream(name, shard, recipe.seed) for name, shard in shards.items()},
        optimizer=tuning.optimizer if tuning else recipe.optimizer,
        schedule=tuning.schedule if tuning else recipe.schedule,
        train=recipe.train,
        identity=identity,
        learn_marked_only=learn_marked_only,
    )
