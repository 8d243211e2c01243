"""What the soak trains: a tiny recipe and its text, its processes, and how two runs of it are compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

from soak_faults import Lost

from fox.artifacts import PARTIAL, REPLACED, sha256_of

ROOT = Path(__file__).parents[1]
STEPS = {1: 400, 2: 100}
"""Of a run, by its number of ranks: two on one machine are slow."""
_OF_TWO_RANKS = ["-o", "stage.short.tokens=20480", "-o", "stage.longer.tokens=5120"]
WITHIN_S = 180
_MOODS = ("seconds", "tokens_per_second", "memory_bytes", "memory_now_bytes", "share_of_peak")
_RECIPE = """
name = "soak"
seed = 5
source.stories.path = "text"
tokenizer.vocab_size = 340
schedule = { warmup_tokens = 4096, decay_tokens = 20480 }
optimizer.peak_learning_rate = 1e-2
train = { precision = "float32", compile = false, checkpoint_every_steps = 8, max_epochs = 9.0 }
eval.heldout_tokens = 600

[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64

[stage.short]
tokens = 76_800
chunk_length = 32
rows = 4
batch_tokens = 256
mix = { text = 1.0 }

[stage.longer]
tokens = 25_600
chunk_length = 64
rows = 2
batch_tokens = 256
mix = { text = 1.0 }
"""


def make_world(folder: Path) -> Path:
    """The recipe, made-up stories, and a run with tokenizer and data, which every run begins as a copy of."""
    draw = random.Random(0)
    words = [one + two for one in ("ka", "lo", "mi", "ne", "su", "ti") for two in ("do", "ren", "shi", "ko", "mar")]
    (folder / "text").mkdir()
    for number in range(300):
        sentences = [" ".join(draw.choices(words, k=draw.randint(4, 10))) for _ in range(draw.randint(6, 14))]
        (folder / f"text/{number:03}.txt").write_text(". ".join(sentences) + ".\n")
    (folder / "soak.toml").write_text(_RECIPE)
    for step in ("tokenizer", "data"):
        process = _start(folder, 1, step, "fresh")
        _, errors = process.communicate(timeout=WITHIN_S)
        if process.returncode:
            raise SystemExit(f"`fox {step}` failed:\n{errors}")
    return folder


class Trainee:
    """A run that is under way: stopped and started again, until it is done."""

    numbers = count(1)

    def __init__(self, world: Path, ranks: int, name: str | None = None) -> None:
        self.world, self.ranks = world, ranks
        self.folder = shutil.copytree(world / "fresh", world / (name or f"run-{next(self.numbers)}"))
        self.metrics = self.folder / "pretrain/metrics.jsonl"
        self.checkpoints = self.folder / "pretrain/checkpoints"
        self.seen: list[list[dict[str, Any]]] = []
        self.rows_again = 0
        """How many rows were there at a fault, and were then made anew."""
        self._before = (0, 0)

    def start(self, out: Path | None = None, **how: Any) -> subprocess.Popen[str]:
        """A process that trains on; `out` is another place that the run has been brought to."""
        self.expect_rows_again()
        return _start(self.world, self.ranks, "pretrain", str(out or self.folder), **how)

    def finish(self) -> None:
        """Train to the end without a fault."""
        process = self.start()
        _, errors = process.communicate(timeout=WITHIN_S)
        self.keep_rows()
        if process.returncode or "Traceback" in errors:
            raise Lost(f"could not go on (exit code {process.returncode}): {errors[:600]} … {errors[-600:]}")
        left = [path.name for path in self.folder.rglob("*") if path.name.startswith((PARTIAL, REPLACED))]
        if left:
            raise Lost(f"left half-made files behind: {left}")

    def is_done(self) -> bool:
        return (self.folder / "manifests/pretrain.json").exists()

    def num_rows(self) -> int:
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0

    def newest_checkpoints(self) -> list[Path]:
        """Those with a name of their own, newest first."""
        return sorted(self.checkpoints.glob("step-*"), reverse=True)

    def latest(self) -> str:
        """The name of the checkpoint to go on from, or nothing."""
        path = self.checkpoints / "latest"
        return path.read_text().strip() if path.exists() else ""

    def expect_rows_again(self) -> None:
        """From here on, training goes on from a checkpoint: what there are of rows by now may be made again."""
        self._before = self.num_rows(), len(self._went_on())

    def keep_rows(self) -> None:
        """Remember the rows that there are now, to compare them: some of their steps will be done again."""
        self.seen.append(rows_of(self.metrics))
        rows, times = self._before
        went_on = self._went_on()
        if len(went_on) > times:
            self.rows_again += max(0, min(rows, self.num_rows()) - went_on[-1])
        self.expect_rows_again()

    def _went_on(self) -> list[int]:
        """The steps of the checkpoints from which training went on, by the run's own record."""
        path = self.folder / "pretrain/events.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [event["step"] for event in events if event["event"] == "went on"]


class Reference:
    """The undisturbed run: its rows and its weights."""

    def __init__(self, world: Path, ranks: int) -> None:
        whole = Trainee(world, ranks, f"undisturbed-{ranks}")
        whole.finish()
        self.rows, self.weights = rows_of(whole.metrics), sha256_of(whole.folder / "model/model.safetensors")
        self.steps = STEPS[ranks]
        if len(self.rows) != self.steps:
            raise SystemExit(f"the undisturbed run has {len(self.rows)} rows for {self.steps} steps")

    def differences(self, trainee: Trainee) -> list[str]:
        """In what a finished run is not this one, at its end and at each of its faults."""
        differences = []
        for at, rows in enumerate([*trainee.seen, rows_of(trainee.metrics)]):
            when = f"after fault {at + 1}" if at < len(trainee.seen) else "at the end"
            wrong = [row["step"] for row, right in zip(rows, self.rows, strict=False) if row != right]
            if wrong:
                differences.append(f"{when}, step {wrong[0]} and {len(wrong) - 1} others have other rows")
        if len(rows) != self.steps:
            differences.append(f"{len(rows)} rows for {self.steps} steps")
        if sha256_of(trainee.folder / "model/model.safetensors") != self.weights:
            differences.append("the weights differ")
        return differences


def rows_of(metrics: Path) -> list[dict[str, Any]]:
    """The whole rows of metrics.jsonl, without what depends on the machine's mood; a kill may have cut the last."""
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [{key: value for key, value in row.items() if key not in _MOODS} for row in rows]


def _start(world: Path, ranks: int, step: str, out: str, **how: Any) -> subprocess.Popen[str]:
    many = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--max-restarts", "3", "-m"]
    command = [sys.executable, "-m", *(many if ranks > 1 else []), "fox", step, "soak.toml", "--out", out]
    if ranks > 1:
        command += _OF_TWO_RANKS
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=world, env=environment, text=True, **{**pipes, **how})
