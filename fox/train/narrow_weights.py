"""Weights that are kept in bf16 alone: four bytes a weight with its gradient, where float32 masters and AdamW take sixteen.

bf16 has 8 bits of precision, so a step smaller than a 256th of a weight is lost when the sum is rounded to the nearest: training stands
still. Rounded up or down by chance, in proportion to how near each neighbour is, the sum is right on average (Gupta et al., arXiv
1502.02551; for bf16 training Zamirai et al., arXiv 2010.06192). Chance comes from (seed, step, parameter), so a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = 1 << 22
"""Weights rounded at a time, so that the random numbers of a vocabulary of 256,000 take 16 MB and not 2 GB."""

_ROUNDINGS = "roundings"


def narrow_matrices(model: nn.Module) -> None:
    """Keep every matrix of `model` in bf16 from now on, rounded to the nearest; vectors (norms) stay in float32."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.bfloat16()


class OneByOne(torch.optim.Optimizer):
    """Any optimiser, shown a float32 copy of one bf16 parameter and its gradient at a time. Its state stays in float32.

    The gradient of a parameter is gone once that parameter is stepped.
    """

    def __init__(self, inner: torch.optim.Optimizer, seed: int) -> None:
        self._inner = inner
        self._seed = seed
        self._round = round_by_chance
        super().__init__(inner.param_groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step every parameter that has a gradient."""
        assert closure is None
        self._inner.state = self.state  # anew each time: loading a state dict puts another in its place
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._inner.param_groups = [{**group, "params": [parameter]}]
                    self._step_one(parameter, number)
                number += 1

    def _step_one(self, parameter: Tensor, number: int) -> None:
        narrow, gradient = parameter.data, parameter.grad
        assert gradient is not None
        if narrow.dtype == torch.float32:
            self._inner.step()
            return
        parameter.grad = None
        parameter.data = narrow.float()
        parameter.grad = gradient.float()
        del gradient
        self._inner.step()
        parameter.grad = None
        wide, parameter.data = parameter.data, narrow
        done = self.state[parameter].get(_ROUNDINGS, torch.zeros((), dtype=torch.float32))
        generator = torch.Generator(narrow.device).manual_seed(_mixed(self._seed, int(done), number))
        self._round(wide, narrow, generator)
        self.state[parameter][_ROUNDINGS] = done + 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would however store the state in the parameters' type: bf16 moments."""
        super().load_state_dict(state_dict)
        theirs = [key for group in state_dict["param_groups"] for key in group["params"]]
        ours = [parameter for group in self.param_groups for parameter in group["params"]]
        for key, parameter in zip(theirs, ours, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if isinstance(value, Tensor):
                    self.state[parameter][name] = value.detach().clone()


def round_by_chance(wide: Tensor, narrow: Tensor, generator: torch.Generator) -> None:
    """Write float32 `wide` into bf16 `narrow` of the same shape, each number to one of its two neighbours, on average itself.

    bf16 is the upper half of float32's bits: a random lower half is added, and the lower half cut off.
    """
    bits_N, out_N = wide.contiguous().view(-1).view(torch.int32), narrow.view(-1)
    for at in range(0, len(bits_N), _BLOCK):
        part_N = bits_N[at : at + _BLOCK]
        chance_N = torch.randint(0, 1 << 16, part_N.shape, dtype=torch.int32, device=wide.device, generator=generator)
        rounded_N = chance_N.add_(part_N).bitwise_and_(-(1 << 16)).view(torch.float32)
        out_N[at : at + _BLOCK] = rounded_N.bfloat16()


def _mixed(seed: int, step: int, number: int) -> int:
    """One seed from three numbers: neighbours of one must not give neighbours of another (splitmix64's finaliser, twice)."""
    mixed = seed
    for part in (step, number):
        mixed = (mixed + 0x9E3779B97F4A7C15 * (part + 1)) & (1 << 64) - 1
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
        mixed ^= mixed >> 31
    return mixed >> 1
