"""The optimisers that a recipe can name, each as one torch optimiser over the model's own parameters, all of them torch's own.

AdamW (Loshchilov and Hutter, arXiv 1711.05101), Muon (Jordan, kellerjordan.github.io/posts/muon; at AdamW's learning rates by
Moonlight, arXiv 2502.16982) and Adafactor (Shazeer and Stern, arXiv 1804.04235). Weight decay is for matrices only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fox.errors import UserError
from fox.recipe.schema import Optimizer
from fox.train.machine import product_type
from fox.train.muon import MuonWithAdamW
from fox.train.narrow_weights import OneByOne

_ADAFACTOR_EPS = (1e-15, 1e-3)
"""Below the first, squared (torch squares it), a second moment counts as none: 1e-30 as in the paper. Torch's default, 1.2e-7, is above
the mean squared gradients of a model of a few million weights, whose factors would then be wrong. The second is the paper's."""


def make_optimizer(
    model: nn.Module, settings: Optimizer, precision: str = "float32", seed: int = 0
) -> torch.optim.Optimizer:
    """The optimiser of `model`: one object with the param_groups, state and state_dict of any torch optimiser.

    `precision` is the resolved train.precision: with `bf16`, Muon's products are in bf16; with `bf16-weights` each parameter is
    stepped in float32 and rounded back by chance, from `seed`. Raises UserError where the model is sharded and that can't be.
    """
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = _of_name(model, settings, product_type(precision))
    if precision != "bf16-weights":
        return optimizer
    if sharded:
        raise UserError(
            "train.precision",
            precision,
            problem="is for one device, and these weights are spread over several",
            mend="-o train.precision=bf16",
        )
    return OneByOne(optimizer, seed)


def _of_name(model: nn.Module, settings: Optimizer, of_products: torch.dtype) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate, betas = settings.peak_learning_rate, (settings.beta1, settings.beta2)
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=settings.eps, fused=True)
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=rate, eps=_ADAFACTOR_EPS)
        case "muon":
            inner = list(_matrices_of_blocks(model))
            groups[0]["params"] = [matrix for matrix in matrices if not any(matrix is other for other in inner)]
            return MuonWithAdamW(
                inner,
                groups,
                lr=rate,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                betas=betas,
                eps=settings.eps,
                product_type=of_products,
            )


def _matrices_of_blocks(model: nn.Module) -> Iterator[Tensor]:
    """Embedding and head are no maps from one hidden state to another, which is what Muon's reasoning is for."""
    layers = model.get_submodule("layers")
    return (parameter for parameter in layers.parameters() if parameter.ndim == 2)
