"""A mixture that follows the loss, in a real training: the harder source gets more, and no stop or roll-back changes a bit of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fox.train.loop as loop
from fox.formats.token_shards import Shard, ShardWriter
from fox.model import Transformer
from fox.recipe import Recipe
from fox.train.batches import Batch
from fox.train.events import read_events
from fox.train.stages import new_model, pretrain, what_was_read
from tests.unit.train.micro_training import VOCAB_SIZE, recipe_of
from tests.unit.train.stops import slowly
from tests.unit.train.test_loop import Stop, StoppingMeter, hash_of, rows_of

STEPS = 40
STAGE = {"chunk_length": 16, "rows": 8, "batch_tokens": 128, "mix_follows": "odm", "mix_every_steps": 4}
MIX = {"easy": 1.0, "hard": 1.0}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shard]:
    """One source says the same over and over, the other is noise."""
    dice = np.random.default_rng(0)
    shards = {}
    for name in ("easy", "hard"):
        path = tmp_path_factory.mktemp("shards") / f"{name}.ds"
        writer = ShardWriter(path, VOCAB_SIZE, False)
        for _ in range(100):
            tokens = dice.integers(2, VOCAB_SIZE, 30) if name == "hard" else np.arange(30) % 5 + 2
            writer.write(tokens, None)
        writer.close()
        shards[name] = Shard(path, VOCAB_SIZE)
    return shards


Run = Callable[..., Transformer]


def recipe_with(stage: dict[str, Any] | None = None, **rules: Any) -> Recipe:
    half = {"tokens": STEPS // 2 * 128, "mix": MIX, **STAGE, **(stage or {})}
    train = {"precision": "float32", "compile": False, "checkpoint_every_steps": 3, "keep_checkpoints": 4}
    return recipe_of(
        source={"easy": {"path": "e"}, "hard": {"path": "h"}},
        train={**train, **rules},
        stage={"one": half, "two": half},
        tune=None,
    )


@pytest.fixture
def run(two: dict[str, Shard], tmp_path: Path) -> Run:
    """Train two stages that follow the loss in a folder below tmp_path, from where that is, stopped after `stop_at` steps."""

    def train(name: str, stop_at: int | None = None, stage: dict[str, Any] | None = None, **rules: Any) -> Transformer:
        recipe = recipe_with(stage, **rules)
        model = new_model(recipe, VOCAB_SIZE)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        meter = StoppingMeter(math.inf if stop_at is None else 128 * stop_at)
        pretrain(recipe, model, two, folder, {}, meter, lambda *_: None)
        return model

    return train


def mixes_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == "mix"]


def test_the_harder_source_gets_more_and_the_rows_have_the_mixture_on_record(run: Run, tmp_path: Path) -> None:
    run("whole")
    rows, events = rows_of(tmp_path / "whole"), mixes_of(tmp_path / "whole")
    assert [(event["stage"], event["step"]) for event in events] == [
        *(("one", step) for step in (5, 9, 13, 17)),
        *(("two", step) for step in (25, 29, 33, 37)),
    ]
    assert rows[-1]["loss_by_source"]["hard"] > 2 * rows[-1]["loss_by_source"]["easy"]
    hard = [event["mix"]["hard"] for event in events]
    assert 0.5 < hard[0] < hard[3] and 0.5 < hard[4] < hard[7] and hard[7] > 0.57
    for event, until in zip(events, [9, 13, 17, 21, 29, 33, 37, 41], strict=True):
        drawn: Counter[str] = Counter()
        for row in rows[event["step"] - 1 : until - 1]:
            drawn.update(row["mix"])
        assert drawn["hard"] / drawn.total() == pytest.approx(event["mix"]["hard"], abs=1.5 / 32)  # to the row


def test_no_text_is_read_twice_while_there_is_other_text(run: Run, two: dict[str, Shard], tmp_path: Path) -> None:
    run("whole")
    recipe = recipe_with()
    seen = what_was_read(recipe, recipe.stage, two, tmp_path / "whole")["seen"]
    read = {name: sum(row["mix"][name] for row in rows_of(tmp_path / "whole")) for name in two}
    assert read["hard"] > 1.1 * read["easy"]
    for name, (never, once) in seen.items():
        assert never + once == pytest.approx(1) and 0.97 * read[name] <= 3000 * once <= read[name]


def test_without_it_the_mixture_stays(run: Run, tmp_path: Path) -> None:
    run("still", stage={"mix_follows": None})
    assert not mixes_of(tmp_path / "still")
    assert {row["mix"]["hard"] for row in rows_of(tmp_path / "still")} == {64}


# Checkpoints are of each third step and at a stage's end; mixtures change after each fourth.
@pytest.mark.parametrize(
    "stops", [[4, 4, 5, 8, 9, 13, 20, 25, 40], *map(slowly, ([4], [5], [8], [11], [12], [16], [20], [21], [24]))]
)
def test_a_stopped_run_goes_on_bit_for_bit(run: Run, tmp_path: Path, stops: list[int]) -> None:
    whole = run("whole")
    for stop_at in stops:
        with pytest.raises(Stop):
            run("stopped", stop_at)
    assert hash_of(run("stopped")) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")
    assert mixes_of(tmp_path / "stopped") == mixes_of(tmp_path / "whole")


@pytest.mark.parametrize("stop_at", [7, 8, 9, 12])
def test_a_kill_between_a_change_and_its_checkpoint_tells_it_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    whole = run("whole")
    write = loop.write_events

    def write_and_die(folder: Path, events: list[dict[str, Any]]) -> None:
        write(folder, events)
        if events[-1]["event"] == "mix" and events[-1]["step"] > stop_at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_events", write_and_die)
        with pytest.raises(Stop):
            run("killed")
    assert mixes_of(tmp_path / "killed")[-1]["step"] > json.loads(_latest_state(tmp_path / "killed"))["step"]
    assert hash_of(run("killed")) == hash_of(whole)
    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    assert mixes_of(tmp_path / "killed") == mixes_of(tmp_path / "whole")


def _latest_state(folder: Path) -> bytes:
    checkpoints = folder / "checkpoints"
    return (checkpoints / (checkpoints / "latest").read_text().strip() / "state.json").read_bytes()


@pytest.mark.parametrize("stops", [[10, 12, 13, 17], *map(slowly, ([], [8], [11], [12], [14]))])
def test_a_roll_back_keeps_the_changes_that_are_on_record(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int]
) -> None:
    """Steps 13 and 14 are poisoned, which rolls back to step 12; the window holds a change, after step 12."""
    plain = loop.summed_pass
    batches: list[bytes] = []

    def listen(training: Any, batch: Batch, *rest: Any) -> torch.Tensor:
        batches.append(batch.token_BL.numpy().tobytes())
        return plain(training, batch, *rest)

    monkeypatch.setattr(loop, "summed_pass", listen)
    run("listened")
    poisoned = {batches[11], batches[12]}

    def poisoning(training: Any, batch: Batch, *rest: Any) -> torch.Tensor:
        loss = plain(training, batch, *rest)
        return loss * math.nan if batch.token_BL.numpy().tobytes() in poisoned else loss

    monkeypatch.setattr(loop, "summed_pass", poisoning)
    whole = run("whole", skips_in_a_row=2)
    (roll_back,) = [event for event in read_events(tmp_path / "whole") if event["event"] == "roll_back"]
    assert (roll_back["to"], roll_back["step"]) == (9, 13)
    events = mixes_of(tmp_path / "whole")
    assert [event["step"] for event in events] == [5, 9, 13, 17, 25, 29, 33, 37]
    for stop_at in stops:
        with pytest.raises(Stop):
            run("stopped", stop_at, skips_in_a_row=2)
    assert hash_of(run("stopped", skips_in_a_row=2)) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")
    assert mixes_of(tmp_path / "stopped") == events


def test_a_source_is_held_within_max_epochs(run: Run, two: dict[str, Shard], tmp_path: Path) -> None:
    most = len(two["hard"].tokens) * 0.87
    run("held", max_epochs=0.87)
    assert any(event.get("held") == ["hard"] for event in mixes_of(tmp_path / "held"))
    seen = sum(row["mix"]["hard"] for row in rows_of(tmp_path / "held"))
    assert most - 2 * 128 < seen <= most
