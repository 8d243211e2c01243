"""The micro recipe's world: its text, its `fox` processes, and what of a run must never differ."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fox.artifacts import PARTIAL, REPLACED, sha256_of
from fox.runs.folder import STEPS as FOLDERS

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "COLUMNS": "100"}
STEPS = 18  # of pre-training: stages end at 10, 15 and 18
STAGE_ENDS = {10: "short", 15: "longer", 18: "last"}


def write_world(folder: Path) -> Path:
    """The recipe and what it reads: 120 stories and 150 chats of made-up words."""
    draw = random.Random(0)
    words = [
        one + two
        for one in ["ka", "lo", "mi", "ne", "su", "ti", "ra", "po"]
        for two in ["do", "ren", "shi", "ko", "mar", "ta", "lin", "ve"]
    ]

    def sentence() -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(4, 10))).capitalize() + "."

    (folder / "text").mkdir(parents=True)
    for number in range(120):
        story = "\n".join(sentence() for _ in range(draw.randint(3, 14)))
        (folder / f"text/{number:03}.txt").write_text(f"{story}\n")
    with (folder / "chats.jsonl").open("w") as file:
        for _ in range(150):
            turns = [role for _ in range(draw.randint(1, 3)) for role in ("user", "assistant")]
            chat = {"messages": [{"role": role, "content": sentence()} for role in turns]}
            file.write(f"{json.dumps(chat)}\n")
    shutil.copy(HERE / "micro.toml", folder)
    return folder


def start(folder: Path, *words: str, **how: Any) -> subprocess.Popen[str]:
    """A `fox` process in `folder`, with its output in pipes."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-m", "fox", *words]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, text=True, **{**pipes, **how})


def fox(folder: Path, *words: str, expect: int = 0, said: str | None = None, **how: Any) -> tuple[str, str]:
    """What a `fox` process wrote to its output and its errors, once it ended with `expect` and without a traceback."""
    if said is not None:
        how["stdin"] = subprocess.PIPE
    process = start(folder, *words, **how)
    out, errors = process.communicate(said, timeout=120)
    assert "Traceback" not in errors, errors
    assert process.returncode == expect, f"exit code {process.returncode}, not {expect}:\n{out}\n{errors}"
    return out, errors


def kill_when(reached: Callable[[], bool], folder: Path, *words: str, sent: int = signal.SIGKILL) -> tuple[int, str]:
    """Start `fox`, send it a signal as soon as `reached()`; its exit code and what it wrote to its errors."""
    process = start(folder, *words)
    deadline = time.monotonic() + 100
    while not reached() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0002)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def num_rows(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def leftovers(folder: Path) -> list[Path]:
    """What a process that could clean up after itself must not leave."""
    return [path for path in folder.rglob("*") if path.name.startswith((PARTIAL, REPLACED))]


def essence(run: Path) -> dict[str, Any]:
    """All of a finished run that must be the same however often it was stopped: losses, scores and weights, to the last bit."""
    others = {name: sha256_of(run / name) for name in ("tokenizer/tokenizer.json", "eval/results.json")}
    return {**others, **trained(run, "pretrain"), **trained(run, "tune")}


def trained(run: Path, step: str = "pretrain") -> dict[str, Any]:
    """Of that, what one of the two trainings has made."""
    moods = ("seconds", "tokens_per_second", "share_of_peak", "memory_bytes", "memory_now_bytes")
    rows = [json.loads(line) for line in (run / step / "metrics.jsonl").read_text().splitlines()]
    weights = run / FOLDERS[step][0] / "model.safetensors"
    return {
        step: [{key: value for key, value in row.items() if key not in moods} for row in rows],
        f"{step} weights": sha256_of(weights),
        f"{step} scores": {path.name: json.loads(path.read_text()) for path in (run / step).glob("heldout/*.json")},
    }


def undo(run: Path, first: str) -> None:
    """Leave nothing of a step and of those after it."""
    for step in list(FOLDERS)[list(FOLDERS).index(first) :]:
        (run / f"manifests/{step}.json").unlink()
        for name in FOLDERS[step]:
            shutil.rmtree(run / name, ignore_errors=True)
