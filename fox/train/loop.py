"""The one training loop, for pre-training and tuning alike.

Every step is a function of the weights, the optimiser's state and the step's number: there is no other state, so a run that
goes on from a checkpoint gives the losses of one that never stopped, bit for bit (same torch, threads and instructions).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fox.errors import UserError
from fox.model import Transformer
from fox.progress import Meter
from fox.recipe.schema import Optimizer, Schedule, Train
from fox.train.allocator import keep_freed_memory
from fox.train.batches import make_batch
from fox.train.checkpoint import Checkpoints, Identity, Progress
from fox.train.compilation import compile_blocks
from fox.train.curriculum import StageOrder, told
from fox.train.distributed import (
    TrainingModel,
    clip_gradients,
    gather,
    groups_of_one_mesh,
    spread,
    sum_gradients_now,
    summed_pass,
)
from fox.train.events import Event, read_events, write_events
from fox.train.gauges import Gauges, LossBySource, peak_flops
from fox.train.machine import device, peak_memory_bytes, resolve_precision
from fox.train.metrics import Metrics
from fox.train.mixing import Mixtures, rows_needed
from fox.train.narrow_weights import narrow_matrices
from fox.train.optimizer import make_optimizer
from fox.train.packing import Packing
from fox.train.schedule import learning_rate_fraction
from fox.train.stop import StopSignals
from fox.train.team import ALONE, Team
from fox.train.trouble import (
    Verdict,
    Watch,
    looks_back,
    newest_rows,
    passed_over,
    roll_back_event,
    skip_event,
    undone_by,
)

AfterStage = Callable[[str, Transformer], None]
"""Called once a stage has ended, with its name and the model as it is then. Whatever it does must survive being done twice."""

OnRow = Callable[[dict[str, Any]], None]
"""Called with each row of metrics.jsonl, once it is written."""


def nobody(row: dict[str, Any]) -> None:
    """Nobody else wants the row."""


@dataclass(frozen=True)
class Job:
    """All that a training run is made of, besides the model."""

    folder: Path
    orders: Sequence[StageOrder]
    packing: Packing
    optimizer: Optimizer
    schedule: Schedule
    train: Train
    identity: Identity
    learn_marked_only: bool
    most_tokens: Mapping[str, float]
    """How much of each source a mixture that follows the loss may come to."""
    team: Team = ALONE
    seed: int = 0
    """Of what optimisers draw: train.precision = bf16-weights rounds by chance."""
    needed_steps: Collection[int] = ()
    """Of these steps checkpoints stay to the end."""
    on_row: OnRow = nobody


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


def train(model: Transformer | None, job: Job, meter: Meter, after_stage: AfterStage) -> Outcome:
    """Train `model` in place through all stages, from the latest checkpoint on where there is one.

    On many ranks, the leader alone has a `model`, and it has the whole weights whenever
    `after_stage` is called (by it alone) and at the end.
    Raises Stopped after SIGTERM and KeyboardInterrupt after SIGINT, with a checkpoint of the step that was under way.
    """
    keep_freed_memory()
    team = job.team
    steps = _all_steps(job.orders)
    total_tokens = steps[-1].tokens_seen
    precision = resolve_precision(job.train.precision)
    training = spread(model, team, precision)
    optimizer = make_optimizer(training.transformer, job.optimizer, precision, job.seed)
    if precision == "bf16-weights":
        narrow_matrices(training.transformer)
    training.transformer.checkpointing = job.train.activation_checkpointing
    groups_of_one_mesh(optimizer)
    checkpoints = Checkpoints(
        job.folder / "checkpoints",
        job.identity,
        job.train.keep_checkpoints,
        job.train.milestone_every_steps,
        job.needed_steps,
        team,
        looks_back(job.train),
    )
    peak = peak_flops(precision, team)
    course = _go_on(job, checkpoints, training, optimizer, peak)
    progress = course.progress
    if progress.step:
        meter.tell(_changes(progress))
        free = {key: job.identity.free.get(key) for key in ("ranks", "threads")}
        _record(job, progress, {"event": "went on", "step": progress.step, **free})
    with StopSignals(patient=team.size > 1) as stop:
        if job.train.roll_backs and not team.from_leader(checkpoints.steps):
            # Of the first weights, drawn or given: trouble before the next checkpoint goes back to these.
            checkpoints.save(progress, training.transformer, optimizer)
        if progress.step:
            meter.start = meter.done = steps[progress.step - 1].tokens_seen
            if steps[progress.step - 1].ends_stage:  # killed between its checkpoint and the end of what follows it
                _after(after_stage, steps[progress.step - 1].order, model, training, team, stop)
        if job.train.compile:
            compile_blocks(training.transformer)
        training.train()
        while course.progress.step < len(steps):
            progress = course.progress
            step = steps[progress.step]
            if not job.packing.has(step.order.name):
                with stop.at_once():  # the checkpoint of the stage before it is safe
                    job.packing.reach(step.order.name, course.mixtures.orders)
            began = time.perf_counter()
            about = {"step": progress.step + 1, "tokens": step.tokens_seen, "stage": step.order.name}
            verdict = Verdict("go")
            if over := passed_over(progress.events, progress.step + 1):
                row: dict[str, Any] = {"mix": {}, "passed_over": over["reason"]}
                course.watch.pass_over({**about, **row})
            else:
                tokens_before = steps[progress.step - 1].tokens_seen if progress.step else 0
                fraction = learning_rate_fraction(job.schedule, tokens_before, step.tokens_seen, total_tokens)
                order = course.mixtures.orders[step.order.name]
                row, verdict = train_step(
                    training, optimizer, job, order, step.in_stage, fraction, precision, course.watch, about
                )
            took = time.perf_counter() - began
            progress.seconds += took
            if verdict.action == "roll_back":
                _roll_back(job, checkpoints, progress, verdict)
                course = _go_on(job, checkpoints, training, optimizer, peak, progress.seconds)
                continue
            progress.step += 1
            if verdict.action == "skip":
                _record(job, progress, skip_event(verdict, progress.step), once=True)
            if change := course.mixtures.after_step({**about, **row}, progress.events):
                _record(job, progress, change)
            if course.metrics and course.gauges:
                measured = course.gauges.of_step(row["mix"], step.order.batch_tokens_of(step.in_stage), took)
                line = {**about, **row, "seconds": round(progress.seconds, 3), **({} if over else measured)}
                course.metrics.add(line)
                job.on_row(line)
            meter.advance_to(step.tokens_seen, f"{step.order.name}, loss {row.get('loss', math.nan):.3f}")
            stopped = team.any_of(stop.noted)
            # Weights that trouble keeps as they are need no checkpoint more, which would push out one from before it.
            due = progress.step % job.train.checkpoint_every_steps == 0 and (
                not (over or course.watch.skips_in_a_row) or progress.step in job.needed_steps
            )
            if step.ends_stage or due or stopped:
                if stopped:
                    progress.events.append({"event": "stopped", "step": progress.step, "signal": stopped})
                if course.metrics:
                    course.metrics.flush()
                checkpoints.save(progress, training.transformer, optimizer)
            if stopped:  # on record only now: a stop whose checkpoint fails is a failure
                if team.leads:
                    write_events(job.folder, progress.events)
                raise stop.error(stopped, progress.step)
            if step.ends_stage:
                _after(after_stage, step.order, model, training, team, stop)
                training.train()
    gather(training, model)
    if model is not None:
        model.eval()
    final_loss = course.metrics.last_loss() if course.metrics else math.nan
    return Outcome(len(steps), total_tokens, final_loss, round(course.progress.seconds, 1), peak_memory_bytes())


def train_step(
    training: TrainingModel,
    optimizer: torch.optim.Optimizer,
    job: Job,
    order: StageOrder,
    step: int,
    rate_fraction: float,
    precision: str,
    watch: Watch,
    about: dict[str, Any],
) -> tuple[dict[str, Any], Verdict]:
    """One step of the optimiser on the stage's `step`, unless the watch stops it; what its row in metrics.jsonl says of it.

    Loss is in nats a learnt token. `about` is the beginning of the row: the step, its stage, and the run's tokens after it.
    Every rank knows the rows of the whole step, and takes its share of the passes: the data do not depend on how many there are.
    """
    rows = order.rows_of_step(step)
    passes = [rows[at : at + order.stage.rows] for at in range(0, len(rows), order.stage.rows)]
    mine = _share_of(passes, job.team)
    batches = [make_batch(some, job.packing, job.learn_marked_only) for some in mine]
    num_targets = int(job.team.sum(torch.tensor(sum(batch.num_targets for batch in batches), device=device())))
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
    by_source = LossBySource(rows, device())
    for number, (batch, some) in enumerate(zip(batches, mine, strict=True), start=1):
        sum_gradients_now(training, number == len(batches))
        each_BL = torch.zeros(batch.token_BL.shape, device=device())
        share = summed_pass(training, batch, precision, each_BL) / num_targets
        share.backward()
        loss += share.item()
        by_source.add(some, each_BL, batch)
    loss = float(job.team.sum(torch.tensor(loss, dtype=torch.float64, device=device())))
    norm = clip_gradients(training, job.optimizer.clip_norm, job.team)
    means = by_source.means(job.team)
    # Ranks that work on the same rows round in their own ways where their machines differ; by the leader's numbers all judge, and mix, alike.
    loss, norm, *of_sources = job.team.as_leader([loss, norm, *means.values()])
    # The one place where a step can still be refused: no weight has changed.
    verdict = watch.judge({**about, "loss": loss, "gradient_norm": norm})
    if verdict.action == "go":
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    row = {
        "loss": loss,
        "loss_by_source": dict(zip(means, of_sources, strict=True)),
        "learning_rate": rate,
        "gradient_norm": norm,
        **told(rows, order.stage.row_length),
        "targets": num_targets,
    }
    return ({**_finite(row), "skipped": verdict.reason} if verdict.reason else row), verdict


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers that JSON can't say."""
    tables = {key: _finite(value) if isinstance(value, dict) else value for key, value in row.items()}
    return {key: value for key, value in tables.items() if not isinstance(value, float) or math.isfinite(value)}


@dataclass
class _Course:
    """How far the run has come and what it knows from there. Metrics and gauges are the leader's."""

    progress: Progress
    metrics: Metrics | None
    gauges: Gauges | None
    watch: Watch
    mixtures: Mixtures


def _go_on(
    job: Job,
    checkpoints: Checkpoints,
    training: TrainingModel,
    optimizer: torch.optim.Optimizer,
    peak: float,
    seconds: float | None = None,
) -> _Course:
    """Fill model and optimiser from the latest checkpoint. A roll-back that a kill came between is done first."""
    team = job.team
    progress = checkpoints.load(training.transformer, optimizer)
    recorded: list[Event] = team.from_leader(lambda: read_events(job.folder))
    if left := undone_by(recorded, progress.events, progress.step):
        checkpoints.go_back(left["to"])
        progress = checkpoints.load(training.transformer, optimizer)
    progress.events = recorded + [event for event in progress.events if event not in recorded]
    if seconds is not None:
        progress.seconds = seconds
    metrics = Metrics(job.folder / "metrics.jsonl", progress.step) if team.leads else None
    seen = team.from_leader(lambda: newest_rows(metrics.lines(), job.train) if metrics else [])
    vocab_size = training.transformer.config.vocab_size
    watch = Watch(job.train, job.schedule.warmup_tokens, vocab_size, seen)
    gauges = Gauges(training.transformer, peak, job.packing.shards, metrics.rows()) if metrics else None
    mixed = team.from_leader(lambda: metrics.newest(rows_needed(job.orders)) if metrics else [])
    mixtures = Mixtures(job.orders, progress.events, mixed, job.most_tokens, job.packing.lanes)
    return _Course(progress, metrics, gauges, watch, mixtures)


def _changes(progress: Progress) -> str:
    """What has changed since the checkpoint that a run goes on from; "" where nothing has."""
    here = [event for event in progress.events if event["event"] == "changed" and event["step"] == progress.step]
    if not here:
        return ""
    values = here[-1]["values"]
    told = ", ".join(f"{key} = {now!r} (was {was!r})" for key, (was, now) in sorted(values.items()))
    if all(key.startswith("train.") for key in values):
        return f"going on with {told}"
    return f"going on with {told}: the same training, but for the last digits of its losses"


def _roll_back(job: Job, checkpoints: Checkpoints, progress: Progress, verdict: Verdict) -> None:
    """Make an earlier checkpoint the latest, once that is on record. Raises Failure where it can't help."""
    step = progress.step + 1
    kept = job.team.from_leader(checkpoints.steps)
    event = roll_back_event(verdict, step, progress.events, kept, job.train.roll_backs)
    _record(job, progress, event)
    checkpoints.go_back(event["to"])


def _record(job: Job, progress: Progress, event: Event, once: bool = False) -> None:
    """Add an event to the run's record. With `once`, one that a step which is done again has told before is not told again."""
    if once and event in progress.events:
        return
    progress.events.append(dict(event))
    if job.team.leads:
        write_events(job.folder, progress.events)


def _share_of(passes: list[Any], team: Team) -> list[Any]:
    """This rank's passes of a step. `check_ranks` has seen that they divide."""
    each, left = divmod(len(passes), team.data_ranks)
    assert each and not left, f"{len(passes)} passes on {team.data_ranks} ranks"
    return passes[team.data_rank * each : (team.data_rank + 1) * each]


def _after(
    after_stage: AfterStage,
    order: StageOrder,
    model: Transformer | None,
    training: TrainingModel,
    team: Team,
    stop: StopSignals,
) -> None:
    """Without compiled code, which would be made anew for each of held-out text's many shapes, and only where nothing stopped.

    The leader does it with the whole model, and the others wait. It is done again after a stop, so a signal ends it at once.
    """
    gather(training, model)

    def lead() -> None:
        assert model is not None
        with torch.compiler.set_stance("force_eager"):
            after_stage(order.name, model)

    with stop.at_once():
        team.from_leader(lead)


def _all_steps(orders: Sequence[StageOrder]) -> list[_Step]:
    steps: list[_Step] = []
    tokens = 0
    for order in orders:
        for in_stage in range(order.stage.steps):
            tokens += order.batch_tokens_of(in_stage)
            steps.append(_Step(len(steps), order, in_stage, tokens))
    return steps
