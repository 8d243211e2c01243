"""Each tracker through its own library: it has every row, goes on as the same run, and never stops a training.

TensorBoard comes with the dev extra; MLflow (its store of files) and W&B (offline) are tested where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from fox.errors import UserError
from fox.train import trackers
from fox.train.trackers import Row, Trackers, Wanted, numbers_of

RECIPE = {"name": "micro", "seed": 7, "optimizer": {"peak_learning_rate": 0.01}}
PAGE = 'name = "micro"\nseed = 7\n'


def needs(library: str) -> Any:
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


def row_of(step: int, stage: str = "short") -> dict[str, Any]:
    return {
        "step": step,
        "stage": stage,
        "loss": 5.0 - step / 10,
        "loss_by_source": {"a": 4.0, "b": 6.0 - step},
        "tokens": step * 128,
    }


def track(wanted: Wanted, folder: Path, rows: list[dict[str, Any]]) -> None:
    with Trackers(wanted, folder, "micro", RECIPE, PAGE) as watching:
        for row in rows:
            watching.on_row(row)


def test_a_rows_numbers_are_named_by_table_and_source() -> None:
    assert dict(numbers_of({**row_of(3), "done": True})) == {
        "loss": 4.7,
        "loss_by_source/a": 4.0,
        "loss_by_source/b": 3.0,
        "tokens": 384.0,
    }


@pytest.mark.parametrize("wanted", [Wanted(wandb=""), Wanted(mlflow="")])
def test_an_empty_name_is_the_users_mistake(wanted: Wanted) -> None:
    with pytest.raises(UserError, match="is empty"):
        wanted.check()


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (Wanted(tensorboard=True), "pip install 'foxlm[trackers]'"),
        (Wanted(wandb="fox"), "pip install wandb"),
        (Wanted(mlflow="runs"), "pip install mlflow"),
    ],
)
def test_a_missing_library_is_told_with_the_line_that_installs_it(
    wanted: Wanted, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"needs {wanted.names()[0]}") as caught:
        wanted.check()
    assert line in str(caught.value)


def test_nothing_is_opened_before_the_first_row(tmp_path: Path) -> None:
    track(Wanted(tensorboard=True, wandb="fox", mlflow=str(tmp_path / "m")), tmp_path / "run", [])
    assert not list(tmp_path.iterdir())


class Broken:
    def __init__(self) -> None:
        self.rows: list[int] = []
        self.finished: bool | None = None

    def on_row(self, row: Row) -> None:
        if row["step"] in (2, 3):
            raise ConnectionError("the network is gone")
        self.rows.append(row["step"])

    def close(self, finished: bool) -> None:
        self.finished = finished


def test_a_failure_is_said_once_and_later_rows_still_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken()
    monkeypatch.setattr(trackers, "_TensorBoard", lambda *_: broken)
    track(Wanted(tensorboard=True), tmp_path, [row_of(step) for step in range(1, 6)])
    assert (broken.rows, broken.finished) == ([1, 4, 5], True)
    assert capsys.readouterr().err.count("the network is gone") == 1


def test_one_that_cannot_be_opened_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no such project")

    monkeypatch.setattr(trackers, "_WandB", refuse)
    track(Wanted(wandb="fox"), tmp_path, [row_of(step) for step in range(1, 6)])
    assert capsys.readouterr().err.count("no such project") == 1


def test_a_slow_one_does_not_hold_up_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = threading.Event()

    class Slow(Broken):
        def on_row(self, row: Row) -> None:
            hangs.wait(20)

    monkeypatch.setattr(trackers, "_TensorBoard", lambda *_: Slow())
    monkeypatch.setattr(trackers, "_MOST_WAITING_ROWS", 3)
    monkeypatch.setattr(trackers, "_LAST_ROWS_S", 0.05)
    with Trackers(Wanted(tensorboard=True), tmp_path, "micro", RECIPE, PAGE) as watching:
        for step in range(1, 9):  # more than may wait: were they waited for, this would never end
            watching.on_row(row_of(step))
    hangs.set()
    assert "misses some" in capsys.readouterr().err


def test_a_training_that_is_stopped_is_not_told_as_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Broken()
    monkeypatch.setattr(trackers, "_TensorBoard", lambda *_: watched)
    with pytest.raises(KeyboardInterrupt), Trackers(Wanted(True), tmp_path, "micro", RECIPE, PAGE) as watching:
        watching.on_row(row_of(1))
        raise KeyboardInterrupt
    assert watched.finished is False


@needs("tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_shows_each_step_once_after_going_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wanted = Wanted(tensorboard=True)
    track(wanted, tmp_path, [row_of(step) for step in range(1, 6)])
    track(
        wanted, tmp_path, [{**row_of(step, "long"), "loss": 1.0} for step in range(4, 8)]
    )  # killed after step 3's checkpoint
    shown = EventAccumulator(str(tmp_path / "trackers/tensorboard")).Reload()
    loss = shown.Scalars("loss")
    assert [event.step for event in loss] == [1, 2, 3, 4, 5, 6, 7]
    assert [round(event.value, 4) for event in loss] == [4.9, 4.8, 4.7, 1.0, 1.0, 1.0, 1.0]
    assert {"loss_by_source/a", "loss_by_source/b", "tokens"} <= set(shown.Tags()["scalars"])
    assert any(b"seed = 7" in event.tensor_proto.string_val[0] for event in shown.Tensors("recipe/text_summary"))


@needs("mlflow")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow_has_one_run_with_every_row_and_the_recipe(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    where = tmp_path / "mlruns"
    wanted = Wanted(mlflow=str(where))
    track(wanted, tmp_path / "run", [row_of(step) for step in range(1, 4)])
    track(wanted, tmp_path / "run", [row_of(step, "long") for step in range(4, 6)])
    client = MlflowClient(tracking_uri=f"sqlite:///{where}/mlflow.db")
    experiment = client.get_experiment_by_name("fox")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss_by_source/b")] == [1, 2, 3, 4, 5]
    assert run.data.params["optimizer.peak_learning_rate"] == "0.01"
    assert (run.info.status, run.data.tags["stage"]) == ("FINISHED", "long")


@needs("wandb")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_wandb_offline_keeps_the_rows_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))
    wanted = Wanted(wandb="fox")
    track(wanted, tmp_path, [row_of(step) for step in range(1, 4)])
    (run_id,) = json.loads((tmp_path / "trackers/ids.json").read_text()).values()
    track(wanted, tmp_path, [row_of(step) for step in range(4, 6)])
    assert list(json.loads((tmp_path / "trackers/ids.json").read_text()).values()) == [run_id]
    files = sorted((tmp_path / "trackers/wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{run_id}.wandb"] * len(files) and files
    assert b"loss_by_source" in b"".join(file.read_bytes() for file in files)
