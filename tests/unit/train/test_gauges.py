"""What a step's line tells beside its loss, held against plain sums over the same batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fox.formats.token_shards import Shard
from fox.model.loss import IGNORED, plain_summed_loss
from fox.progress import Meter
from fox.train import gauges
from fox.train.batches import make_batch
from fox.train.machine import device, matrix_peak_flops
from fox.train.stages import new_model, pack, pretrain
from fox.train.team import ALONE, Team
from tests.unit.train.micro_training import VOCAB_SIZE, recipe_of


def trained(folder: Path, shards: dict[str, Shard]) -> list[dict]:
    recipe = recipe_of()
    model = new_model(recipe, VOCAB_SIZE)
    pretrain(recipe, model, shards, folder, {}, Meter("", None, "tokens"), lambda *_: None)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def rows(tmp_path: Path, shards: dict[str, Shard]) -> list[dict]:
    return trained(tmp_path / "run", shards)


def test_the_losses_of_the_sources_add_up_to_the_loss(rows: list[dict]) -> None:
    alone = [row for row in rows if len(row["loss_by_source"]) == 1]
    assert all(row["loss"] == pytest.approx(*row["loss_by_source"].values(), rel=1e-5) for row in alone)
    mixed = [row for row in rows if len(row["loss_by_source"]) > 1]
    assert mixed
    for row in mixed:
        assert min(row["loss_by_source"].values()) < row["loss"] < max(row["loss_by_source"].values())
        assert row["loss_by_source"].keys() == row["mix"].keys()


def losses_of_a_first_step(tmp_path: Path, shards: dict[str, Shard]) -> dict[str, float]:
    """Of the second stage's first step, before anything is learnt: row for row, by the plain loss."""
    recipe = recipe_of()
    orders, packing = pack(recipe, recipe.stage, shards, tmp_path / "again")
    model = new_model(recipe, VOCAB_SIZE)
    nats: dict[str, float] = {}
    targets: dict[str, int] = {}
    for row in orders[1].rows_of_step(0):
        batch = make_batch([row], packing, learn_marked_only=False)
        hidden_BLD = model(batch.token_BL, batch.segment_BL)
        loss = plain_summed_loss(hidden_BLD.flatten(0, 1), model.output_weight_VD, batch.target_BL.flatten()).item()
        source = row[0].lane.source
        nats[source] = nats.get(source, 0.0) + loss
        targets[source] = targets.get(source, 0) + int((batch.target_BL != IGNORED).sum())
    return {source: nats[source] / targets[source] for source in nats}


@pytest.mark.parametrize("is_damaged", [False, True])
def test_each_source_has_its_own_rows_losses(
    is_damaged: bool, tmp_path: Path, shards: dict[str, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no learning rate the second stage begins with the first weights, so its first step can be made again plainly."""
    recipe = recipe_of(optimizer={"peak_learning_rate": 1e-30, "weight_decay": 0.0})
    if is_damaged:  # every row counted as the next one's
        add = gauges.LossBySource.add
        monkeypatch.setattr(
            gauges.LossBySource, "add", lambda self, rows, each, batch: add(self, rows, each.roll(1, 0), batch)
        )
    folder = tmp_path / "run"
    pretrain(recipe, new_model(recipe, VOCAB_SIZE), shards, folder, {}, Meter("", None, "tokens"), lambda *_: None)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = next(line for line in lines if line["stage"] == "mixed")["loss_by_source"]
    assert (told == pytest.approx(losses_of_a_first_step(tmp_path, shards), rel=1e-5)) is not is_damaged


def test_epochs_are_tokens_over_the_sources_size_and_go_on_after_a_stop(
    rows: list[dict], shards: dict[str, Shard]
) -> None:
    drawn = dict.fromkeys(shards, 0.0)
    for row in rows:
        for source, tokens in row["mix"].items():
            drawn[source] += tokens
        wanted = {source: tokens / len(shards[source].tokens) for source, tokens in drawn.items() if tokens}
        assert row["epoch"] == pytest.approx(wanted, abs=1e-4)
    model = new_model(recipe_of(), VOCAB_SIZE)
    gone_on = gauges.Gauges(model, 1e12, shards, rows[:-1]).of_step(rows[-1]["mix"], 256, 1.0)
    assert gone_on["epoch"] == rows[-1]["epoch"]


def test_share_of_peak_is_six_operations_a_parameter_and_token(shards: dict[str, Shard]) -> None:
    model = new_model(recipe_of(), VOCAB_SIZE)
    told = gauges.Gauges(model, 1e13, shards, []).of_step({"a": 1000}, 50_000_000, 0.5)
    assert told["share_of_peak"] == pytest.approx(6 * model.num_parameters() * 1e8 / 1e13, abs=1e-4)
    assert told["tokens_per_second"] == 1e8
    assert 0 < told["memory_now_bytes"] <= 1.01 * told["memory_bytes"]


class BesideAnother(Team):
    """One of two, of whom the other reaches 5e9 operations a second."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def wait(self) -> None:
        self.calls.append("wait")

    def sum_of_all(self, value: float) -> float:
        self.calls.append("sum")
        return value + 5e9


def test_the_peak_is_the_sum_of_what_all_ranks_reach_at_the_same_time() -> None:
    team, mine = BesideAnother(), matrix_peak_flops(device(), False)
    assert gauges.peak_flops("float32", ALONE) == mine
    assert gauges.peak_flops("float32", team) == mine + 5e9
    assert team.calls == ["wait", "sum"], "all begin to measure together"


def test_the_peak_is_of_products_that_fill_the_machine() -> None:
    sizes: list[torch.Size] = []

    class Seen(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.__name__ in ("matmul", "__matmul__"):
                sizes.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    with Seen():
        matrix_peak_flops.__wrapped__(torch.device("cpu"), False)
    assert set(sizes) == {torch.Size((2048, 2048))} and len(sizes) >= 3


def test_the_peak_is_a_machines(rows: list[dict]) -> None:
    assert 1e9 < matrix_peak_flops(torch.device("cpu"), False) < 1e14
    assert all(math.isfinite(row["share_of_peak"]) for row in rows)
