"""The mean of a run's late checkpoints: nearer to the minimum than any of them where the learning rate has not decayed to nothing.

Latest weight averaging: Kaddour, arXiv 2209.14981; for language models Sanyal et al., arXiv 2306.03241. Which checkpoints these are
follows from the recipe alone, so a run that was stopped in between, and saved itself then, ends with the same mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fox.errors import Failure
from fox.model import Transformer
from fox.recipe.schema import Schedule, Train
from fox.recipe.stage import Stage, steps_saved
from fox.train.checkpoint import name_of, read_weights


def averaged_steps(stages: Iterable[Stage], schedule: Schedule, train: Train) -> list[int]:
    """After which steps of the whole pre-training the checkpoints were saved that its model is the mean of; oldest first.

    None of them lies in the warm-up, where weights are far from where they end.
    """
    saved = steps_saved(stages, train.checkpoint_every_steps, schedule.warmup_tokens)
    return saved[len(saved) - min(train.average_checkpoints, len(saved)) :]


def average_checkpoints(checkpoints: Path, steps: Sequence[int], model: Transformer) -> None:
    """Give `model` the mean weights of the checkpoints of `steps`. Raises Failure where one is missing or damaged."""
    missing = [name_of(step) for step in steps if not (checkpoints / name_of(step)).is_dir()]
    if missing:
        raise Failure(
            f"{checkpoints}: {', '.join(missing)} of the {len(steps)} checkpoints to average are missing. "
            "Put them back, or run again with -o train.average_checkpoints=0 and another --out."
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    model.float()  # what was trained in bf16 alone has a mean that bf16 can't say
    model.load_state_dict(mean_weights(read_weights(checkpoints / name_of(step), shapes) for step in steps))


@torch.no_grad()
def mean_weights(all_of_them: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor, float32, holding one set of weights and the sum: added in the order given, and divided once."""
    total: dict[str, Tensor] = {}
    count = 0
    for weights in all_of_them:
        count += 1
        if not total:
            total = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
            continue
        assert weights.keys() == total.keys()
        for name, tensor in weights.items():
            total[name] += tensor
    return {name: tensor.div_(count) for name, tensor in total.items()}
