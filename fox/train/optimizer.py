"""AdamW (Loshchilov and Hutter, arXiv 1711.05101), with weight decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn

from fox.recipe.schema import Optimizer


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """The optimiser of `model`. Norms (and whatever else has one axis) are not decayed."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.peak_learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        fused=True,
    )
