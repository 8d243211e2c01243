"""Muon for the blocks' matrices and AdamW for everything else, as one optimiser.

The maths are torch.optim.Muon's; what is ours is the order of the work. Torch orthogonalises one matrix after another, in bf16 always.
Matrices of one shape go together here, in float32 where the model's products are: a processor without bf16 instructions takes seven
times as long in bf16. And where a matrix is spread over devices it is gathered first, for its singular values are those of the whole.
torch.optim.Muon itself is the twin that tests compare with.

M matrices of one shape, R rows, C columns, R <= C
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# The most bytes that are stacked at once: 16 matrices of 2,048 x 4,096 in float32 would be half a gigabyte.
_STACK_BYTES = 1 << 26


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon over `matrices`, scaled to AdamW's step sizes, and torch.optim.AdamW over `other_groups`.

    State and groups are those of the two, in one: `momentum_buffer` of a matrix; `step`, `exp_avg`, `exp_avg_sq` of the rest.
    """

    def __init__(
        self,
        matrices: list[Tensor],
        other_groups: list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
        betas: tuple[float, float],
        eps: float,
        product_type: torch.dtype,
    ) -> None:
        self._product_type = product_type
        muon = torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(other_groups, lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both, from the parameters' gradients."""
        assert closure is None
        muon_groups = [group for group in self.param_groups if "ns_steps" in group]
        self._adamw.state = self.state  # anew each time: loading a state dict puts others in their place
        self._adamw.param_groups = [group for group in self.param_groups if "ns_steps" not in group]
        self._adamw.step()
        for group in muon_groups:
            self._step_matrices(group)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        updates: list[tuple[Tensor, Tensor]] = []
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            momentum_RC = state["momentum_buffer"]
            momentum_RC.lerp_(matrix.grad, 1 - group["momentum"])
            updates.append((matrix, matrix.grad.lerp(momentum_RC, group["momentum"])))  # Nesterov's
        rate, kept = group["lr"], 1 - group["lr"] * group["weight_decay"]
        for together in _by_shape(updates):
            whole = [update.full_tensor() if isinstance(update, DTensor) else update for _, update in together]
            orthogonal_MRC = orthogonalised(torch.stack([_wide(update) for update in whole]), group, self._product_type)
            for (matrix, _), orthogonal_RC in zip(together, orthogonal_MRC, strict=True):
                step_RC = orthogonal_RC.T if matrix.shape[0] > matrix.shape[1] else orthogonal_RC
                if isinstance(matrix, DTensor):
                    step_RC = distribute_tensor(step_RC.contiguous(), matrix.device_mesh, matrix.placements)
                # Moonlight, section 2.2: an orthogonal step has a root mean square of 1 / sqrt(max(R, C)); AdamW's is about 0.2.
                matrix.mul_(kept).add_(step_RC.to(matrix.dtype), alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))


def orthogonalised(update_MRC: Tensor, group: dict[str, Any], product_type: torch.dtype) -> Tensor:
    """Each matrix with its singular values moved to about 1, by the Newton-Schulz iteration that `group` describes; R <= C."""
    a, b, c = group["ns_coefficients"]
    x_MRC = update_MRC.to(product_type)
    x_MRC = x_MRC / torch.linalg.matrix_norm(x_MRC, keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram_MRR = x_MRC @ x_MRC.mT
        x_MRC = torch.baddbmm(x_MRC, torch.baddbmm(gram_MRR, gram_MRR, gram_MRR, beta=b, alpha=c), x_MRC, beta=a)
    return x_MRC


def _wide(update: Tensor) -> Tensor:
    return update.T if update.shape[0] > update.shape[1] else update


def _by_shape(updates: list[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Matrices of one shape, lying or standing, in stacks of at most _STACK_BYTES."""
    of_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for pair in updates:
        of_shape[tuple(sorted(pair[0].shape))].append(pair)
    stacks = []
    for (rows, columns), pairs in of_shape.items():
        count = max(1, _STACK_BYTES // (4 * rows * columns))
        stacks += [pairs[at : at + count] for at in range(0, len(pairs), count)]
    return stacks
