"""Others who may watch a training: TensorBoard, Weights & Biases and MLflow, each through its own library, by flag.

metrics.jsonl is the record, and always written; a tracker gets each of its rows, and the resolved recipe. It works in a
thread of its own, so that a slow network does not hold up a step; what it can't do is said once, and training goes on. A
training that goes on is the same run there: its id is kept beside the checkpoints.
"""

from __future__ import annotations

import importlib.util
import json
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from fox.artifacts import write_json
from fox.errors import UserError

Row = Mapping[str, Any]
"""A line of metrics.jsonl: numbers, the stage's name, and tables of numbers by source."""

FOLDER = "trackers"
"""Below the training's folder: ids and TensorBoard's files. No part of what the training makes."""
_MOST_WAITING_ROWS = 10_000
_LAST_ROWS_S = 60.0


class Tracker(Protocol):
    """One of them, for one training."""

    def on_row(self, row: Row) -> None: ...

    def close(self, finished: bool) -> None:
        """The training is done, or was stopped and may go on."""
        ...


@dataclass(frozen=True)
class Wanted:
    """The trackers that a command's flags ask for: `wandb` a project, `mlflow` an address or a folder."""

    tensorboard: bool = False
    wandb: str | None = None
    mlflow: str | None = None

    def names(self) -> list[str]:
        asked = {"tensorboard": self.tensorboard, "wandb": self.wandb is not None, "mlflow": self.mlflow is not None}
        return [name for name, wanted in asked.items() if wanted]

    def check(self) -> None:
        """Raise UserError, before any work, where a library is not installed or a name is empty."""
        for name in self.names():
            if getattr(self, name) == "":
                raise UserError(f"--{name}", problem="is empty", mend=f"Name {_NAMED[name]}.")
            if importlib.util.find_spec(name) is None:
                raise UserError(f"--{name}", problem=f"needs {name}", mend=f"pip install {_PACKAGES[name]}")


NONE_WANTED = Wanted()
_NAMED = {"wandb": "a project", "mlflow": "a server's address, or a folder"}
_PACKAGES = {"tensorboard": "'foxlm[trackers]'", "wandb": "wandb", "mlflow": "mlflow"}


class Trackers:
    """The wanted trackers of one training, opened with its first row. Use it with `with`."""

    def __init__(self, wanted: Wanted, folder: Path, name: str, recipe: dict[str, Any], recipe_page: str) -> None:
        """`folder` is the training's own; `name` what to call the run there; `recipe_page` is the recipe to be read."""
        ids = _Ids(folder / FOLDER / "ids.json")
        openers: dict[str, Callable[[int], Tracker]] = {
            "tensorboard": lambda step: _TensorBoard(folder / FOLDER / "tensorboard", recipe_page, step),
            "wandb": lambda step: _WandB(str(wanted.wandb), name, recipe, folder / FOLDER, ids),
            "mlflow": lambda step: _MLflow(str(wanted.mlflow), name, recipe, ids),
        }
        self._background = [_Background(one, openers[one]) for one in wanted.names()]

    def on_row(self, row: Row) -> None:
        """Tell all of them; never waits and never raises."""
        for one in self._background:
            one.on_row(row)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        until = time.monotonic() + _LAST_ROWS_S
        for one in self._background:
            one.close(kind is None)
        for one in self._background:
            one.wait(until)


class _Background:
    """A tracker in a thread of its own, which its failures do not leave."""

    def __init__(self, name: str, opened: Callable[[int], Tracker]) -> None:
        self._name, self._open = name, opened
        self._rows: queue.Queue[Row | bool] = queue.Queue(_MOST_WAITING_ROWS)
        self._thread: threading.Thread | None = None
        self._has_failed = False

    def on_row(self, row: Row) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"fox-{self._name}", daemon=True)
            self._thread.start()
        self._put(row)

    def close(self, finished: bool) -> None:
        if self._thread:
            self._put(finished)

    def wait(self, until: float) -> None:
        if self._thread:
            self._thread.join(max(0.0, until - time.monotonic()))
            if self._thread.is_alive():
                self._failed(f"still has not taken the last rows after {_LAST_ROWS_S:.0f} s")

    def _put(self, row: Row | bool) -> None:
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._failed(f"is {_MOST_WAITING_ROWS:,} rows behind, and misses some")

    def _work(self) -> None:
        tracker: Tracker | None = None
        while True:
            row = self._rows.get()
            try:
                if isinstance(row, bool):
                    if tracker:
                        tracker.close(row)
                    return
                tracker = tracker or self._open(row["step"])
                tracker.on_row(row)
            except Exception as error:  # libraries raise whatever they like, and none of it may end a training
                self._failed(str(error).splitlines()[0] if str(error) else type(error).__name__)
                if tracker is None or isinstance(row, bool):  # it can't be had at all
                    return

    def _failed(self, reason: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            sys.stderr.write(f"warning: {self._name}: {reason}. Training goes on, and metrics.jsonl has every row.\n")


class _Ids:
    """The ids of this training's runs elsewhere, by where that is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, place: str) -> str | None:
        return self._all().get(place)

    def keep(self, place: str, run_id: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {**self._all(), place: run_id})

    def _all(self) -> dict[str, str]:
        try:
            return dict(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return {}


class _TensorBoard:
    """An event file a process; on going on, it says from which step on the older ones no longer count."""

    def __init__(self, folder: Path, recipe_page: str, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=10)
        self._stage = ""
        self._write("add_text", "recipe", "".join(f"    {line}\n" for line in recipe_page.splitlines()), first_step)

    def on_row(self, row: Row) -> None:
        for name, value in numbers_of(row):
            self._write("add_scalar", name, value, row["step"])
        if row["stage"] != self._stage:
            self._stage = row["stage"]
            self._write("add_text", "stage", self._stage, row["step"])

    def close(self, finished: bool) -> None:
        self._writer.close()

    def _write(self, kind: str, name: str, value: object, step: int) -> None:
        getattr(self._writer, kind)(name, value, step)


class _WandB:
    """Rows go by their own `step`, since a run that goes on may write one again, and W&B's own count only rises."""

    def __init__(self, project: str, name: str, recipe: dict[str, Any], folder: Path, ids: _Ids) -> None:
        import wandb

        place = f"wandb/{project}"
        run_id = ids.get(place)
        if run_id is None:
            run_id = secrets.token_hex(8)
            ids.keep(place, run_id)
        self._run = wandb.init(
            project=project, name=name, id=run_id, resume="allow", config=recipe, dir=str(folder),
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def on_row(self, row: Row) -> None:
        self._run.log({"step": row["step"], "stage": row["stage"], **dict(numbers_of(row))})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    def __init__(self, where: str, name: str, recipe: dict[str, Any], ids: _Ids) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        address, files = where, None
        if "://" not in where:  # a folder: its newer releases keep runs in a database, and refuse loose files
            folder = Path(where).expanduser().absolute()
            folder.mkdir(parents=True, exist_ok=True)
            address, files = f"sqlite:///{folder}/mlflow.db", folder.as_uri()
        self._client = MlflowClient(tracking_uri=address)
        self._stage = ""
        run_id = ids.get(f"mlflow/{address}")
        if run_id is None:
            experiment = self._client.get_experiment_by_name("fox")
            experiment_id = experiment.experiment_id if experiment else self._client.create_experiment("fox", files)
            run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
            ids.keep(f"mlflow/{address}", run_id)
            params = [Param(key, str(value)) for key, value in _leaves(recipe, ".")]
            for start in range(0, len(params), 100):  # its servers take no more at once
                self._client.log_batch(run_id, params=params[start : start + 100])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def on_row(self, row: Row) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, row["step"]) for name, value in numbers_of(row)]
        self._client.log_batch(self._run_id, metrics=metrics)
        if row["stage"] != self._stage:
            self._stage = row["stage"]
            self._client.set_tag(self._run_id, "stage", self._stage)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")


def numbers_of(row: Row) -> list[tuple[str, float]]:
    """A row's numbers with their names, of tables as table/key; the step itself is none."""
    return [
        (name, float(value))
        for name, value in _leaves(row, "/")
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def _leaves(table: Mapping[str, Any], between: str, before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, between, f"{before}{key}{between}")
        else:
            yield f"{before}{key}", value
