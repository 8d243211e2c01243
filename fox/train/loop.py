"""The one training loop, for pre-training and tuning alike.

Every step is a function of the weights, the optimiser's state and the step's number: there is no other state, so a run that
goes on from a checkpoint gives the losses of one that never stopped, bit for bit (same torch, threads and instructions).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fox.artifacts import disk_failures, write_atomically
from fox.errors import Failure, UserError
from fox.model import Transformer
from fox.model.loss import summed_loss
from fox.progress import Meter
from fox.recipe.schema import Optimizer, Schedule, Train
from fox.train.batches import Batch, Stream, make_batch
from fox.train.checkpoint import Identity, load_checkpoint, save_checkpoint
from fox.train.curriculum import StageOrder
from fox.train.machine import device, peak_memory_bytes, resolve_precision
from fox.train.optimizer import make_optimizer
from fox.train.schedule import learning_rate_fraction

AfterStage = Callable[[str, Transformer], None]
"""Called once a stage has ended, with its name and the model as it is then. Whatever it does must survive being done twice."""


@dataclass(frozen=True)
class Job:
    """All that a training run is made of, besides the model."""

    folder: Path
    orders: Sequence[StageOrder]
    streams: Mapping[str, Stream]
    optimizer: Optimizer
    schedule: Schedule
    train: Train
    identity: Identity
    learn_marked_only: bool


@dataclass(frozen=True)
class Outcome:
    """What a finished run tells of itself."""

    steps: int
    tokens: int
    final_loss: float
    seconds_training: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class _Step:
    """One step of the whole run: its place in its stage, and how many tokens the run has seen after it."""

    number: int
    order: StageOrder
    in_stage: int
    tokens_seen: int

    @property
    def ends_stage(self) -> bool:
        return self.in_stage == self.order.stage.steps - 1


def train(model: Transformer, job: Job, meter: Meter, after_stage: AfterStage) -> Outcome:
    """Train `model` in place through all stages, from the newest checkpoint on where there is one."""
    steps = _all_steps(job.orders)
    model.to(device())
    total_tokens = steps[-1].tokens_seen
    optimizer = make_optimizer(model, job.optimizer)
    checkpoints = job.folder / "checkpoints"
    done, seconds = load_checkpoint(checkpoints, model, optimizer, job.identity)
    metrics = _Metrics(job.folder / "metrics.jsonl", done)
    if done:
        meter.start = meter.done = steps[done - 1].tokens_seen
        if steps[done - 1].ends_stage:  # killed between the stage's last checkpoint and the end of what follows it
            _after(after_stage, steps[done - 1].order, model)
    if job.train.compile:
        _compile_blocks(model)
    precision = resolve_precision(job.train.precision)
    model.train()
    for step in steps[done:]:
        began = time.perf_counter()
        fraction = learning_rate_fraction(job.schedule, step.tokens_seen, total_tokens)
        row = train_step(model, optimizer, job, step.order, step.in_stage, fraction, precision)
        took = time.perf_counter() - began
        seconds += took
        metrics.add(
            {
                "step": step.number + 1,
                "tokens": step.tokens_seen,
                "stage": step.order.name,
                **row,
                "seconds": round(seconds, 3),
                "tokens_per_second": round(step.order.stage.batch_tokens / took, 1),
                "memory_bytes": peak_memory_bytes(),
            }
        )
        note = f"{step.order.name}, loss {row['loss']:.3f}"
        meter.advance_to(step.tokens_seen, note)
        if step.ends_stage or (step.number + 1) % job.train.checkpoint_every_steps == 0:
            metrics.flush()
            save_checkpoint(
                checkpoints, step.number + 1, seconds, model, optimizer, job.identity, job.train.keep_checkpoints
            )
        if step.ends_stage:
            _after(after_stage, step.order, model)
            model.train()
    model.eval()
    last = metrics.last()
    return Outcome(len(steps), total_tokens, last["loss"], round(seconds, 1), peak_memory_bytes())


def train_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    job: Job,
    order: StageOrder,
    step: int,
    rate_fraction: float,
    precision: str,
) -> dict[str, Any]:
    """One step of the optimiser on the stage's `step`; what its row in metrics.jsonl says of it. Loss is in nats a learnt token."""
    rows = order.rows_of_step(step)
    passes = [rows[at : at + order.stage.rows] for at in range(0, len(rows), order.stage.rows)]
    batches = [make_batch(some, job.streams, job.learn_marked_only) for some in passes]
    num_targets = sum(batch.num_targets for batch in batches)
    if not num_targets:
        raise UserError(
            f"{order.recipe_key}.batch_tokens",
            order.stage.batch_tokens,
            problem=f"step {step + 1} has nothing to learn from",
            mend="Take larger steps.",
        )
    rate = job.optimizer.peak_learning_rate * rate_fraction
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = 0.0
    for batch in batches:
        share = _forward(model, batch, precision) / num_targets
        share.backward()
        loss += share.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), job.optimizer.clip_norm)
    if not torch.isfinite(norm):
        raise Failure(
            f"step {step + 1} of stage {order.name}: the gradient is no longer finite (loss {loss}). "
            "Lower optimizer.peak_learning_rate, or lengthen schedule.warmup_tokens, and start another run with --out, "
            "or train again with --redo pretrain (of tuning: --redo tune)."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    drawn: dict[str, int] = {}
    for row in rows:
        drawn[row[0].source] = drawn.get(row[0].source, 0) + order.stage.row_length
    return {
        "loss": loss,
        "learning_rate": rate,
        "gradient_norm": norm.item(),
        "chunk_length": {source: order.chunk_lengths[source] for source in drawn},
        "mix": drawn,
        "targets": num_targets,
    }


def _forward(model: Transformer, batch: Batch, precision: str) -> Tensor:
    """The summed loss of one pass."""
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        hidden_BLD = model(batch.token_BL.to(device), batch.segment_BL.to(device))
        return summed_loss(hidden_BLD.flatten(0, 1), model.output_weight_VD, batch.target_BL.flatten().to(device))


def _after(after_stage: AfterStage, order: StageOrder, model: Transformer) -> None:
    """Without compiled code, which would be made anew for each of held-out text's many shapes, and only where nothing stopped."""
    with torch.compiler.set_stance("force_eager"):
        after_stage(order.name, model)


def _all_steps(orders: Sequence[StageOrder]) -> list[_Step]:
    steps: list[_Step] = []
    tokens = 0
    for order in orders:
        for in_stage in range(order.stage.steps):
            tokens += order.stage.batch_tokens
            steps.append(_Step(len(steps), order, in_stage, tokens))
    return steps


def _compile_blocks(model: Transformer) -> None:
    """Compile the blocks, which share one piece of code, so that it is made once for each shape of a stage."""
    if (
        torch.device("cpu") == next(model.parameters()).device
        and not shutil.which("g++")
        and not shutil.which("clang++")
    ):
        raise UserError(
            "train.compile",
            True,
            problem="needs a C++ compiler, and there is no g++ or clang++",
            mend="Install one, or -o train.compile=false.",
        )
    torch._dynamo.config.recompile_limit = 64  # a shape for each stage; the default of 8 falls back to eager in silence
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in model.layers:
        block.compile(dynamic=False)


class _Metrics:
    """metrics.jsonl: a row a step. Rows of steps that a kill has undone are dropped when the run goes on."""

    def __init__(self, path: Path, steps_done: int) -> None:
        rows = path.read_bytes().splitlines(keepends=True)[:steps_done] if path.exists() else []
        if len(rows) < steps_done:
            raise Failure(
                f"{path}: has {len(rows)} rows, and the checkpoint is of step {steps_done}. Put the rows back, "
                "start another run with --out, or train again with --redo pretrain (of tuning: --redo tune)."
            )
        write_atomically(path, b"".join(rows))
        self._path = path
        self._last = rows[-1] if rows else b""

    def add(self, row: dict[str, Any]) -> None:
        self._last = json.dumps(row).encode() + b"\n"
        with disk_failures(self._path), self._path.open("ab") as file:
            file.write(self._last)

    def flush(self) -> None:
        """Onto the disk, before a checkpoint says that these steps are done."""
        with disk_failures(self._path), self._path.open("rb") as file:
            os.fsync(file.fileno())

    def last(self) -> dict[str, Any]:
        return json.loads(self._last)
