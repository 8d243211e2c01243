"""Pre-training and tuning: the same loop, told what to start from and what to learn from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fox.formats.token_shards import Shard
from fox.kernels.native.attention import can_attend
from fox.model import ModelConfig, Transformer
from fox.progress import Meter
from fox.recipe import Recipe
from fox.recipe.schema import MAY_CHANGE, Tune
from fox.recipe.stage import Stage
from fox.train.averaging import averaged_steps
from fox.train.checkpoint import Checkpoints, Identity
from fox.train.curriculum import StageOrder, curriculum
from fox.train.events import read_events
from fox.train.loop import AfterStage, Job, OnRow, Outcome, nobody, train
from fox.train.machine import device, losses_depend_on, product_type, resolve_precision
from fox.train.packer import Limit
from fox.train.packing import Packing, packing
from fox.train.readings import readings
from fox.train.team import ALONE, Team, current_team

_INDEX = "packing"


def new_model(recipe: Recipe, vocab_size: int) -> Transformer:
    """A model of the recipe's shape with its first weights, drawn from the recipe's seed."""
    model = Transformer(ModelConfig.from_recipe(recipe.model, vocab_size))
    model.initialise(torch.Generator().manual_seed(recipe.seed))
    return model


def pretrain(
    recipe: Recipe,
    model: Transformer | None,
    shards: Mapping[str, Shard],
    folder: Path,
    made_of: dict[str, Any],
    meter: Meter,
    after_stage: AfterStage,
    team: Team = ALONE,
    on_row: OnRow = nobody,
) -> Outcome:
    """Train through the recipe's curriculum, on every token. `made_of` names what the run is made of, for its checkpoints.

    On a team, the leader alone has a `model`, and the others none.
    """
    job = _job(recipe, recipe.stage, shards, folder, made_of, False, team, on_row)
    return train(model, job, meter, after_stage)


def tune(
    recipe: Recipe,
    model: Transformer | None,
    shards: Mapping[str, Shard],
    folder: Path,
    made_of: dict[str, Any],
    meter: Meter,
    after_stage: AfterStage,
    team: Team = ALONE,
    on_row: OnRow = nobody,
) -> Outcome:
    """Train on chats, on the assistant's tokens only."""
    assert recipe.tune
    job = _job(recipe, {"tune": recipe.tune}, shards, folder, made_of, True, team, on_row)
    return train(model, job, meter, after_stage)


def total_tokens(stages: Mapping[str, Stage]) -> int:
    """The tokens of all stages, in whole steps."""
    return sum(stage.total_tokens for stage in stages.values())


def pack(
    recipe: Recipe, stages: Mapping[str, Stage], shards: Mapping[str, Shard], folder: Path, meter: Meter | None = None
) -> tuple[list[StageOrder], Packing]:
    """The order of all rows, and which documents are in them: worked out once, kept in `folder`, the same for all ranks.

    `meter` counts tokens. Raises UserError where a source would be seen too often.
    """
    orders = curriculum(recipe, stages, {name: len(shard.tokens) for name, shard in shards.items()})
    limit = _limit(recipe, stages)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return orders, packing(folder / _INDEX, orders, shards, limit, meter, workers)


def what_was_read(
    recipe: Recipe, stages: Mapping[str, Stage], shards: Mapping[str, Shard], folder: Path
) -> dict[str, Any]:
    """What the training in `folder`, which is done, has read of its sources: see `readings`."""
    events = read_events(folder)
    orders, index = pack(recipe, stages, shards, folder)
    went = {order.name: order.after(events) for order in orders}
    index.reach(orders[-1].name, went)
    return readings(index, list(went.values()))


def check_same_run(recipe: Recipe, stages: Mapping[str, Stage], folder: Path, made_of: dict[str, Any]) -> None:
    """Raise RecipeError where `folder` has a checkpoint of another training than this. It changes nothing: for before anything is.

    For the leader of a team.
    """
    identity = _identity(recipe, stages, made_of, current_team())
    Checkpoints(folder / "checkpoints", identity, recipe.train.keep_checkpoints).check_identity()


def _limit(recipe: Recipe, stages: Mapping[str, Stage]) -> Limit:
    key = "max_tune_epochs" if any(isinstance(stage, Tune) for stage in stages.values()) else "max_epochs"
    return Limit(f"train.{key}", getattr(recipe.train, key))


def _identity(recipe: Recipe, stages: Mapping[str, Stage], made_of: dict[str, Any], team: Team) -> Identity:
    precision = resolve_precision(recipe.train.precision)
    head_dim = recipe.model.head_dim or recipe.model.hidden_size // recipe.model.num_attention_heads
    rounding = {
        **losses_depend_on(),
        "ranks": team.size,
        "attention": "fox" if can_attend(device(), product_type(precision), head_dim) else "torch",
        **{
            "tune.rows" if isinstance(stage, Tune) else f"stage.{name}.rows": stage.rows
            for name, stage in stages.items()
        },
    }
    may_change = {f"train.{key}": getattr(recipe.train, key) for key in MAY_CHANGE}
    return Identity({**made_of, "train.precision": precision}, {**may_change, **rounding})


def _job(
    recipe: Recipe,
    stages: Mapping[str, Stage],
    shards: Mapping[str, Shard],
    folder: Path,
    made_of: dict[str, Any],
    learn_marked_only: bool,
    team: Team,
    on_row: OnRow,
) -> Job:
    tuning = recipe.tune if learn_marked_only else None
    orders, packed = pack(recipe, stages, shards, folder)
    return Job(
        folder=folder,
        orders=orders,
        packing=packed,
        optimizer=tuning.optimizer if tuning else recipe.optimizer,
        schedule=tuning.schedule if tuning else recipe.schedule,
        train=recipe.train,
        identity=_identity(recipe, stages, made_of, team),
        learn_marked_only=learn_marked_only,
        most_tokens={name: _limit(recipe, stages).epochs * len(shard.tokens) for name, shard in shards.items()},
        team=team,
        seed=recipe.seed,
        needed_steps=[] if tuning else averaged_steps(stages.values(), recipe.schedule, recipe.train),
        on_row=on_row,
    )
