"""The mean of late checkpoints: which they are, what it is, and that a stop on the way changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from fox.errors import Failure
from fox.formats.token_shards import Shard
from fox.model import Transformer
from fox.progress import Meter
from fox.recipe import Recipe
from fox.recipe.schema import Schedule, Train
from fox.train.averaging import average_checkpoints, averaged_steps, mean_weights
from fox.train.checkpoint import read_weights
from fox.train.stages import new_model, pretrain

EVERY_3_AND_4_AVERAGED = {
    "precision": "float32", "compile": False, "checkpoint_every_steps": 3, "keep_checkpoints": 1, "average_checkpoints": 4,
}  # fmt: skip
STEPS = [15, 16, 18, 20]  # the micro recipe's stages end after 10, 16 and 20


class Stop(Exception):  # noqa: N818 (it is nobody's error)
    pass


class StoppingMeter(Meter):
    def __init__(self, stop_at_tokens: float = torch.inf) -> None:
        super().__init__("pretrain", None, "tokens")
        self.stop_at_tokens = stop_at_tokens

    def advance_to(self, done: int, note: str = "") -> None:
        super().advance_to(done, note)
        if done >= self.stop_at_tokens:
            raise Stop


@pytest.fixture
def run(
    make_recipe: Callable[..., Recipe], shards: dict[str, Shard], tmp_path: Path
) -> Callable[..., tuple[Transformer, Path]]:
    def train(name: str, meter: Meter | None = None, **other: Any) -> tuple[Transformer, Path]:
        recipe = make_recipe(train={**EVERY_3_AND_4_AVERAGED, **other})
        model = new_model(recipe, 60)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        pretrain(recipe, model, shards, folder, {}, meter or StoppingMeter(), lambda *_: None)
        return model, folder / "checkpoints"

    return train


@pytest.mark.parametrize(
    ("wanted", "every", "warmup_tokens", "expected"),
    [
        (4, 3, 512, STEPS),
        (9, 3, 512, [6, 9, 10, 12, 15, 16, 18, 20]),
        (9, 3, 0, [3, 6, 9, 10, 12, 15, 16, 18, 20]),
        (9, 3, 128 * 6, [9, 10, 12, 15, 16, 18, 20]),
        (9, 3, 10 * 128 + 2 * 256, [15, 16, 18, 20]),
        (9, 3, 10**6, [20]),
        (0, 3, 512, []),
        (1, 3, 512, [20]),
        (3, 100, 512, [10, 16, 20]),
        (9, 100, 512, [10, 16, 20]),
        (3, 1, 512, [18, 19, 20]),
    ],
)
def test_which_checkpoints_are_averaged(
    make_recipe: Callable[..., Recipe], wanted: int, every: int, warmup_tokens: int, expected: list[int]
) -> None:
    train = Train(average_checkpoints=wanted, checkpoint_every_steps=every)
    schedule = Schedule(warmup_tokens=warmup_tokens, decay_tokens=0)
    assert averaged_steps(make_recipe().stage.values(), schedule, train) == expected


def test_the_mean_of_three() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [{"a": torch.randn(3, 4, generator=generator), "b": torch.randn(5, generator=generator)} for _ in range(3)]
    mean = mean_weights(given)
    for name in ("a", "b"):
        exact = torch.stack([weights[name].double() for weights in given]).mean(0)
        assert_close(mean[name], exact.float(), rtol=1e-6, atol=1e-7)
    halves = mean_weights([{"a": torch.ones(2).bfloat16()}, {"a": torch.full((2,), 1 + 2**-7).bfloat16()}])
    assert torch.equal(halves["a"], torch.full((2,), 1 + 2**-8))


@pytest.mark.parametrize("precision", ["float32", "bf16-weights"])
def test_a_run_that_was_stopped_twice_ends_with_the_same_mean(run: Callable[..., Any], precision: str) -> None:
    whole, checkpoints = run("whole", precision=precision)
    last = {name: tensor.float().clone() for name, tensor in whole.state_dict().items()}
    average_checkpoints(checkpoints, STEPS, whole)
    for tokens in (10 * 128 + 7 * 256, 10 * 128 + 9 * 256):
        with pytest.raises(Stop):
            run("stopped", StoppingMeter(tokens), precision=precision)
    stopped, checkpoints = run("stopped", precision=precision)
    average_checkpoints(checkpoints, STEPS, stopped)
    shapes = {name: tuple(tensor.shape) for name, tensor in last.items()}
    mean = mean_weights(read_weights(checkpoints / f"step-{step:08d}", shapes) for step in STEPS)
    for name, tensor in stopped.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole.state_dict()[name]) and torch.equal(tensor, mean[name])
    assert not torch.equal(stopped.embed_tokens.weight, last["embed_tokens.weight"])


def test_a_checkpoint_that_is_missing_or_damaged_is_told(run: Callable[..., Any]) -> None:
    model, checkpoints = run("run")
    with pytest.raises(Failure, match="step-00000017 of the 2 checkpoints to average are missing"):
        average_checkpoints(checkpoints, [17, 20], model)
    data = next(path for path in (checkpoints / "step-00000018").iterdir() if path.suffix == ".distcp")
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    with pytest.raises(Failure, match="damaged"):
        average_checkpoints(checkpoints, STEPS, model)
