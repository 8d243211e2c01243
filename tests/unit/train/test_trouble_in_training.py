"""Trouble in a real training: what is poisoned is skipped or rolled back from, and a stop at any step changes nothing of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch

import fox.train.loop as loop
from fox.errors import Failure, Stopped
from fox.formats.token_shards import Shard
from fox.model import Transformer
from fox.progress import Meter
from fox.recipe import Recipe
from fox.train.batches import Batch
from fox.train.checkpoint import Checkpoints, Progress
from fox.train.events import read_events
from fox.train.stages import new_model, pretrain
from tests.unit.train.stops import slowly
from tests.unit.train.test_loop import Stop, StoppingMeter, hash_of

MOODS = ("seconds", "tokens_per_second", "memory_bytes", "memory_now_bytes", "share_of_peak")
TRAIN = {"precision": "float32", "compile": False, "checkpoint_every_steps": 3, "max_epochs": 99.0}
LONG = {
    "stage": {"only": {"tokens": 7680, "chunk_length": 16, "rows": 8, "batch_tokens": 128, "mix": {"text": 1.0}}},
    "source": {"a": {"path": "a"}, "b": {"path": "b"}},
    "tune": None,
}
"""Sixty steps, so that there is a band."""

Run = Callable[..., Transformer]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [
        json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [{key: value for key, value in row.items() if key not in MOODS} for row in rows]


class SignallingMeter(StoppingMeter):
    """Asks for a stop that saves a checkpoint, as a scheduler does."""

    def advance_to(self, done: int, note: str = "") -> None:
        Meter.advance_to(self, done, note)
        if done == self.stop_at_tokens:
            os.kill(os.getpid(), signal.SIGTERM)


def told_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(folder) if event["event"] == kind]


@pytest.fixture
def run(make_recipe: Callable[..., Recipe], shards: dict[str, Shard], tmp_path: Path) -> Run:
    """Train the micro recipe below tmp_path, from where that is, stopped after `stop_at` steps."""

    def train(
        name: str,
        stop_at: int | None = None,
        train: dict[str, Any] | None = None,
        meter_of: type[StoppingMeter] = StoppingMeter,
        **other: Any,
    ) -> Transformer:
        recipe = make_recipe(train={**TRAIN, **(train or {})}, **other)
        model = new_model(recipe, 60)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        meter = meter_of(math.inf if stop_at is None else _tokens_after(recipe, stop_at))
        pretrain(recipe, model, shards, folder, {}, meter, lambda *_: None)
        return model

    return train


def _tokens_after(recipe: Recipe, steps: int) -> int:
    each = [stage.batch_tokens_of(step) for stage in recipe.stage.values() for step in range(stage.steps)]
    return sum(each[:steps])


@pytest.fixture
def poison(run: Run, make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the loss of some steps' data another, whenever they are read. Which data these are, a run that is not poisoned tells."""

    def make(steps: Collection[int], factor: float, **other: Any) -> None:
        plain = loop.summed_pass
        batches: list[bytes] = []

        def listen(training: Any, batch: Batch, *rest: Any) -> torch.Tensor:
            batches.append(batch.token_BL.numpy().tobytes())
            return plain(training, batch, *rest)

        monkeypatch.setattr(loop, "summed_pass", listen)
        run("listened", **other)
        stages = make_recipe(**other).stage.values()
        passes = [stage.batch_tokens // (stage.rows * stage.row_length) for stage in stages for _ in range(stage.steps)]
        poisoned = {batches[sum(passes[: step - 1])] for step in steps}
        assert len(set(batches)) == len(batches)

        def poisoning(training: Any, batch: Batch, *rest: Any) -> torch.Tensor:
            loss = plain(training, batch, *rest)
            return loss * factor if batch.token_BL.numpy().tobytes() in poisoned else loss

        monkeypatch.setattr(loop, "summed_pass", poisoning)

    return make


def test_steps_that_are_not_finite_change_no_weight_and_a_stop_there_changes_nothing(
    run: Run, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison([5, 6], math.nan)
    whole = run("whole")
    rows = rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["step"] for row in rows if "skipped" in row] == [5, 6]
    assert "loss" not in rows[4] and rows[4]["skipped"] == "the loss is no longer finite"
    assert [event["step"] for event in told_of(tmp_path / "whole", "skip")] == [5, 6]
    for stop_at in (4, 5, 6, 7):
        with pytest.raises(Stop):
            run("stopped", stop_at)
    assert hash_of(run("stopped")) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows
    assert told_of(tmp_path / "stopped", "skip") == told_of(tmp_path / "whole", "skip")
    assert all(parameter.isfinite().all() for parameter in whole.parameters())


def test_a_skipped_step_is_a_step_without_an_update(run: Run, poison: Callable[..., None], tmp_path: Path) -> None:
    poison([20], math.inf)
    run("skipped")
    poisoned = rows_of(tmp_path / "skipped")
    assert "skipped" in poisoned[-1] and "learning_rate" in poisoned[-1]
    assert poisoned[:-1] == rows_of(tmp_path / "listened")[:-1]


def test_a_spike_is_skipped_and_told_with_its_size(run: Run, poison: Callable[..., None], tmp_path: Path) -> None:
    poison([50], 3.0, **LONG)
    run("spiked", **LONG)
    (event,) = told_of(tmp_path / "spiked", "skip")
    row = rows_of(tmp_path / "spiked")[49]
    assert event["step"] == 50 and event["reason"] == row["skipped"] and "deviations above the usual" in row["skipped"]
    assert row["loss"] > 5
    assert [row["step"] for row in rows_of(tmp_path / "listened") if "skipped" in row] == []


@pytest.mark.parametrize("stops", [[6, 8, 9, 10, 12, 17], *map(slowly, ([], [6], [7], [8], [9], [10], [12], [13]))])
def test_a_roll_back_passes_over_the_window_and_a_stop_changes_nothing(
    run: Run, poison: Callable[..., None], tmp_path: Path, stops: list[int]
) -> None:
    rules = {"skips_in_a_row": 2}
    poison([8, 9], math.nan)
    whole = run("whole", train=rules)
    rows = rows_of(tmp_path / "whole")
    (event,) = told_of(tmp_path / "whole", "roll_back")
    assert (event["step"], event["to"], event["since"]) == (9, 6, 8)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["step"] for row in rows if "passed_over" in row] == [7, 8, 9]
    assert all("loss" in row for row in rows if "passed_over" not in row)
    for stop_at in stops:
        with pytest.raises(Stop):
            run("stopped", stop_at, train=rules)
    assert hash_of(run("stopped", train=rules)) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows
    assert told_of(tmp_path / "stopped", "roll_back") == [event]


AT_REST = {**LONG, "optimizer": {"peak_learning_rate": 1e-5}}
"""Losses that hardly fall any more."""


def test_a_loss_that_rises_as_a_whole_is_rolled_back_from_though_no_step_of_it_is_a_spike(
    run: Run, poison: Callable[..., None], tmp_path: Path
) -> None:
    rules = {"drift_steps": 8}
    poison(range(45, 53), 1.0245, **AT_REST)
    whole = run("drifted", train=rules, **AT_REST)
    assert told_of(tmp_path / "drifted", "skip") == [] and told_of(tmp_path / "listened", "roll_back") == []
    (event,) = told_of(tmp_path / "drifted", "roll_back")
    assert event["reason"].startswith("the median loss of 8 steps, ")
    assert 48 <= event["step"] <= 52 and event["since"] == event["step"] - 7
    assert event["to"] < event["since"] and event["to"] % 3 == 0
    rows = rows_of(tmp_path / "drifted")
    assert {event["to"] + 1, event["step"]} <= {row["step"] for row in rows if "passed_over" in row}
    for stop_at in (44, event["step"] - 1, event["step"]):
        with pytest.raises(Stop):
            run("stopped", stop_at, train=rules, **AT_REST)
    assert hash_of(run("stopped", train=rules, **AT_REST)) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows


def test_killed_between_the_record_of_a_roll_back_and_the_roll_back(
    run: Run, poison: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"skips_in_a_row": 2, "checkpoint_every_steps": 1, "keep_checkpoints": 9}
    poison([8, 9], math.nan)
    whole = run("whole", train=rules)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "go_back", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            run("stopped", train=rules)
    assert len(told_of(tmp_path / "stopped", "roll_back")) == 1
    assert hash_of(run("stopped", train=rules)) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_data_that_go_on_being_poisoned_end_it_after_so_many_roll_backs(
    run: Run, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison(range(8, 21), math.nan)
    with pytest.raises(Failure, match=r"no longer finite.*2 roll-backs have not helped.*optimizer\.peak_learning_rate"):
        run("poisoned", train={"skips_in_a_row": 2, "roll_backs": 2})
    assert [(event["to"], event["step"]) for event in told_of(tmp_path / "poisoned", "roll_back")] == [
        (6, 9),
        (3, 11),
    ]  # that of the stage's end, at 10, is of weights that trouble kept as they were, and has pushed out none


def test_weights_that_are_spoilt_are_left_behind(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of one step is fine, and its gradient is too much for the weights: all that follow it are not finite."""
    plain = torch.optim.AdamW.step
    steps = 0

    def spoiling(self: torch.optim.AdamW, *rest: Any, **named: Any) -> Any:
        nonlocal steps
        steps += 1
        done = plain(self, *rest, **named)
        if steps == 9:  # the first one makes the state, for the checkpoint of step 0
            with torch.no_grad():
                self.param_groups[0]["params"][0].fill_(math.nan)
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", spoiling)
    model = run("spoilt", train={"skips_in_a_row": 3})
    (event,) = told_of(tmp_path / "spoilt", "roll_back")
    assert event["to"] == 6 and event["since"] == 9
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [row["step"] for row in rows_of(tmp_path / "spoilt") if "passed_over" in row] == [7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"optimizer": {"peak_learning_rate": 1e-2, "name": "muon"}},
        {"optimizer": {"peak_learning_rate": 1e-2, "name": "adafactor"}},
        {"train": {"precision": "bf16-weights"}},
    ],
    ids=["adamw", "muon", "adafactor", "bf16-weights"],
)
def test_a_stop_before_the_first_step_that_changes_a_weight_changes_nothing(
    run: Run, poison: Callable[..., None], tmp_path: Path, how: dict[str, Any]
) -> None:
    poison([1, 2], math.nan, **how)
    whole = run("whole", **how)
    with pytest.raises(Stopped):
        run("stopped", 2, meter_of=SignallingMeter, **how)
    assert sorted(path.name for path in (tmp_path / "stopped/checkpoints").glob("step-*")) == [
        "step-00000000",
        "step-00000002",
    ]
    assert hash_of(run("stopped", **how)) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_stops_in_trouble_push_out_no_checkpoint_from_before_it(
    run: Run, poison: Callable[..., None], tmp_path: Path
) -> None:
    rules = {"skips_in_a_row": 4}
    poison([7, 8, 9, 10], math.nan)
    whole = run("whole", train=rules)
    (event,) = told_of(tmp_path / "whole", "roll_back")
    assert (event["step"], event["to"], event["since"]) == (10, 6, 7)
    for stop_at, kept in ((7, [0, 3, 6, 7]), (8, [0, 3, 6, 8]), (9, [0, 3, 6, 9])):
        with pytest.raises(Stopped):
            run("stopped", stop_at, rules, SignallingMeter)
        assert sorted(int(path.name[5:]) for path in (tmp_path / "stopped/checkpoints").glob("step-*")) == kept
    assert hash_of(run("stopped", train=rules)) == hash_of(whole)
    assert told_of(tmp_path / "stopped", "roll_back") == [event]


def test_a_stop_is_on_record_once_its_checkpoint_is_safe(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Checkpoints.save

    def full(checkpoints: Checkpoints, progress: Progress, *rest: Any) -> None:
        if progress.step:
            raise Failure("the disk is full")
        plain(checkpoints, progress, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        with pytest.raises(Failure, match="full"):
            run("stopped", 2, meter_of=SignallingMeter)
    assert read_events(tmp_path / "stopped") == []
    with pytest.raises(Stopped):
        run("stopped", 2, meter_of=SignallingMeter)
    stopped = {"event": "stopped", "step": 2, "signal": signal.SIGTERM}
    saved = json.loads((tmp_path / "stopped/checkpoints/step-00000002/state.json").read_text())
    assert read_events(tmp_path / "stopped") == saved["events"] == [stopped]
    (tmp_path / "stopped/events.jsonl").unlink()  # killed between the two
    run("stopped")
    assert read_events(tmp_path / "stopped")[0] == stopped


TO_OTHER_DATA = {
    **LONG,
    "source": {"a": {"path": "a"}, "b": {"path": "b"}, "c": {"path": "c", "kind": "chat"}},
    "stage": {
        "first": {"tokens": 6400, "chunk_length": 16, "rows": 8, "batch_tokens": 128, "mix": {"a": 1.0}},
        "other": {"tokens": 3072, "chunk_length": 32, "rows": 8, "batch_tokens": 256, "mix": {"b": 0.4, "c": 0.6}},
    },
}
"""Fifty steps, and twelve on data, in chunks and in batches that are all new."""


def test_a_spike_in_warm_up_or_right_after_a_border_is_skipped_and_the_border_is_not(
    run: Run, poison: Callable[..., None], tmp_path: Path
) -> None:
    poison([1, 3, 53], 1e6, **TO_OTHER_DATA)
    assert [row["step"] for row in rows_of(tmp_path / "listened") if "skipped" in row] == []
    whole = run("whole", **TO_OTHER_DATA)
    rows = rows_of(tmp_path / "whole")
    assert [row["step"] for row in rows if "skipped" in row] == [1, 3, 53]
    assert all("times that of guessing among 60 tokens" in row["skipped"] for row in rows if "skipped" in row)
    for stop_at in (1, 3, 52, 53):
        with pytest.raises(Stop):
            run("stopped", stop_at, **TO_OTHER_DATA)
    assert hash_of(run("stopped", **TO_OTHER_DATA)) == hash_of(whole)
    assert rows_of(tmp_path / "stopped") == rows


def test_trouble_before_the_first_checkpoint_begins_again_with_the_first_weights(
    run: Run, poison: Callable[..., None], tmp_path: Path
) -> None:
    rules = {"skips_in_a_row": 2}
    poison([2, 3], math.nan)
    again = run("again", train=rules)
    (event,) = told_of(tmp_path / "again", "roll_back")
    assert (event["step"], event["to"], event["since"]) == (3, 0, 2)
    rows = rows_of(tmp_path / "again")
    assert [row["step"] for row in rows if "passed_over" in row] == [1, 2, 3]
    for stop_at in (1, 3, 4):
        with pytest.raises(Stop):
            run("stopped", stop_at, train=rules)
    assert hash_of(run("stopped", train=rules)) == hash_of(again)
    assert rows_of(tmp_path / "stopped") == rows
    shutil.rmtree(tmp_path / "listened")
    poison([1, 2, 3], math.nan)  # of which no weight has changed when the fourth step begins
    assert hash_of(run("unchanged")) == hash_of(again)
    for mine, other in zip(rows_of(tmp_path / "unchanged")[3:], rows[3:], strict=True):
        assert {**mine, "epoch": {}} == {**other, "epoch": {}}, "what is passed over has not been seen"
