"""How fast this machine trains a model, and in how much memory: the real modules timed in small, and added up.

A training step is so many passes over an embedding, equal blocks and a head with its loss, and one step of the optimiser. So
a model of one block and one of two, each as wide and with as large a vocabulary as the real one, tell what a block and what
all the rest costs, at the rows and chunks of a stage. Nothing is fitted beforehand, so whatever the modules become, their
cost is what is measured.

B rows, L tokens a row
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fox.model import ModelConfig, Transformer
from fox.recipe.schema import Model, Optimizer, Train
from fox.train.allocator import keep_freed_memory
from fox.train.batches import Batch
from fox.train.compilation import compile_blocks
from fox.train.distributed import clip_gradients, spread, summed_pass
from fox.train.machine import resolve_precision
from fox.train.narrow_weights import narrow_matrices
from fox.train.optimizer import make_optimizer
from fox.train.team import ALONE

_FEW_TOKENS = 512
"""A pass of fewer takes longer for each token: 128 take twice as long each as 512 do (fox/plan/rows.py)."""

_GLANCE_TOKENS = 256
"""How long a row is looked at before it is known how many can be timed."""

_MOST_SLACK = 1.6
"""In a small model, what the libraries hold once and for all weighs more than it does in a large one."""


@dataclass(frozen=True)
class Shape:
    """What decides the cost of a pass. `document_lengths` maps lengths of documents or chunks, in tokens, to their share of the rows."""

    rows: int
    row_length: int
    document_lengths: Mapping[int, float]


@dataclass(frozen=True)
class StepCost:
    """What a stage's step takes: seconds of one pass and of one step of the optimiser, and bytes at the fullest moment.

    `state_bytes` are the weights and what the optimiser keeps; `pass_bytes` all that a first pass allocates, gradients too.
    """

    pass_seconds: float
    optimizer_seconds: float
    pass_bytes: int
    state_bytes: int
    gradient_bytes: int
    slack: float
    """How many bytes the process holds for each of its tensors': what is freed lies in pieces, and the next need not fit."""
    row_bytes: int
    """By how much another row makes `pass_bytes` more."""
    timed_rows: int
    """How many rows were timed; fewer than the pass has where these would have taken too long."""
    fixed_bytes: int
    """What the process holds beside tensors where blocks are compiled, however large the model: it is nearly all of it the compiler's."""

    def tokens_per_second(self, passes: int, batch_tokens: int) -> float:
        """Of steps of `passes` passes, over `batch_tokens` tokens."""
        return batch_tokens / (passes * self.pass_seconds + self.optimizer_seconds)

    def peak_bytes(self, passes: int) -> int:
        """Of what the tensors take. From the second pass on, a step holds the gradients of the first beside all else."""
        kept = self.state_bytes + (self.gradient_bytes if passes > 1 else 0)
        return int(self.slack * (kept + max(self.pass_bytes, self.gradient_bytes))) + self.fixed_bytes


def time_step(
    model: Model, vocab_size: int, optimizer: Optimizer, shape: Shape, train: Train, compiled: bool, limit_s: float
) -> StepCost | None:
    """What a step of a model of this shape costs here, found in about `limit_s` seconds; None where one row takes
    much longer.

    With `compiled`, blocks run as torch.compile makes them, at the pass's own size, however long that takes: the code that is
    made is kept in torch's cache, and training finds it there.
    """
    began = time.perf_counter()
    keep_freed_memory()  # as training does: fresh pages for every tensor take up to half of a pass's time
    if not compiled and _row_flops(model, vocab_size, shape) > 4 * limit_s * _flops_per_second():
        return None
    before = resident_bytes()
    one, two = (_Small(model, vocab_size, optimizer, blocks, train, compiled) for blocks in (1, 2))
    if compiled:
        rows, least = shape.rows, None
    else:
        glance = Shape(1, min(shape.row_length, _GLANCE_TOKENS), {shape.row_length: 1.0})
        one.timed(glance, rows=1)  # the first pass of a process takes longer
        first_seconds = one.timed(glance, rows=1) * shape.row_length / glance.row_length
        spent = time.perf_counter() - began
        if spent + first_seconds > 4 * limit_s:
            return None
        # A look at the memory, then timed turns, of one block and of two: about twelve times one block's pass in all.
        rows = min(shape.rows, max(-(-_FEW_TOKENS // shape.row_length), int((limit_s - spent) / (12 * first_seconds))))
        least = one.cost(shape, rows=1, turns=1) if rows > 1 else None
    of_one, of_two = one.cost(shape, rows, turns=0), two.cost(shape, rows, turns=0)
    _forget_peak()
    for turn in range(5 if compiled else 3):  # in turns, so that a busy moment does not fall on one of them alone
        if turn and not compiled and time.perf_counter() - began > 1.5 * limit_s:
            break
        of_one, of_two = of_one.best(one.timed(shape, rows)), of_two.best(two.timed(shape, rows))
    held = 2 * (one.weight_bytes + two.weight_bytes) + of_two.bytes  # weights, gradients, a pass
    beyond = max(0, _peak_bytes() - before - held)
    slack = 1.0 if compiled else min(_MOST_SLACK, 1.0 + beyond / held)
    block = of_two.less(of_one)
    rest = of_one.less(block)
    optimizer_one, optimizer_two = one.optimizer_seconds(), two.optimizer_seconds()
    blocks, grown = model.num_hidden_layers, shape.rows / rows
    fixed = rest
    if least and rows > 1:  # what a pass costs however few its rows: gradients of the vocabulary's matrices, above all
        a_row = _Cost(max(0.0, of_one.seconds - least.seconds) / (rows - 1), (of_one.bytes - least.bytes) / (rows - 1))
        fixed = rest.plus(a_row.less(block.times(1 / rows)), shape.rows - rows)
    elif rows < shape.rows:
        fixed = rest.times(grown)
    total = fixed.plus(block.times(grown), blocks)
    return StepCost(
        pass_seconds=total.seconds,
        optimizer_seconds=optimizer_one + max(0.0, optimizer_two - optimizer_one) * (blocks - 1),
        pass_bytes=int(total.bytes),
        state_bytes=one.state_bytes() + (two.state_bytes() - one.state_bytes()) * (blocks - 1),
        gradient_bytes=one.weight_bytes + (two.weight_bytes - one.weight_bytes) * (blocks - 1),
        slack=slack,
        row_bytes=int(blocks * block.bytes / rows),
        timed_rows=rows,
        fixed_bytes=int(beyond) if compiled else 0,
    )


def least_pass_seconds(model: Model, vocab_size: int, shape: Shape) -> float:
    """Of a pass through one block and the head here, at the speed of a matrix product."""
    return shape.rows * _row_flops(model, vocab_size, shape) / _flops_per_second()


def _row_flops(model: Model, vocab_size: int, shape: Shape) -> float:
    """Of a row through the head and one block, forward and backward, at least: 6 for each weight (fox/plan/size.py)."""
    weights = model.hidden_size * (vocab_size + 3 * model.intermediate_size + 2 * model.hidden_size)
    return 6.0 * weights * shape.row_length


def _flops_per_second() -> float:
    """Of a matrix product here, at a glance, to see what is not worth beginning."""
    a = torch.ones(768, 768)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * 768**3 / min(seconds)


@dataclass(frozen=True)
class _Cost:
    seconds: float
    bytes: float

    def best(self, seconds: float) -> _Cost:
        return _Cost(min(self.seconds, seconds), self.bytes)

    def less(self, other: _Cost) -> _Cost:
        return _Cost(max(0.0, self.seconds - other.seconds), max(0.0, self.bytes - other.bytes))

    def plus(self, other: _Cost, times: float) -> _Cost:
        return _Cost(self.seconds + times * other.seconds, self.bytes + times * other.bytes)

    def times(self, factor: float) -> _Cost:
        return _Cost(self.seconds * factor, self.bytes * factor)


class _Small:
    """A model of few blocks, to be timed. Its weights are drawn anew: what they are does not matter, that they are not 0 does."""

    def __init__(
        self, model: Model, vocab_size: int, optimizer: Optimizer, blocks: int, train: Train, compiled: bool
    ) -> None:
        few = model.model_copy(update={"num_hidden_layers": blocks})
        transformer = Transformer(ModelConfig.from_recipe(few, vocab_size))
        transformer.initialise(torch.Generator().manual_seed(0))
        self.precision = resolve_precision(train.precision)
        self.model = spread(transformer, ALONE, self.precision)
        if self.precision == "bf16-weights":
            narrow_matrices(transformer)
        transformer.checkpointing = train.activation_checkpointing
        self.model.train()
        self.optimizer = make_optimizer(transformer, optimizer, self.precision)
        self.weight_bytes = sum(weight.numel() * weight.element_size() for weight in transformer.parameters())
        self.vocab_size = vocab_size
        self.compiled = compiled
        if compiled:
            compile_blocks(transformer)

    def cost(self, shape: Shape, rows: int, turns: int) -> _Cost:
        """Bytes that a first pass allocates at its fullest, and the quickest of `turns` passes after it (none: infinity)."""
        self.optimizer.zero_grad(set_to_none=True)
        if (
            self.precision == "bf16" or self.compiled
        ):  # code is made and memory is laid out at the first call of each size
            self.timed(shape, rows)
            self.optimizer.zero_grad(set_to_none=True)
        allocated = _most_allocated(lambda: self.timed(shape, rows))
        seconds = min((self.timed(shape, rows) for _ in range(turns)), default=float("inf"))
        return _Cost(seconds, allocated)

    def timed(self, shape: Shape, rows: int) -> float:
        """Seconds of a pass, forward and backward."""
        batch = _batch(shape, rows, self.vocab_size)
        began = time.perf_counter()
        loss = summed_pass(self.model, batch, self.precision) / batch.num_targets
        loss.backward()
        loss.item()
        return time.perf_counter() - began

    def optimizer_seconds(self) -> float:
        """Of a step with its clipping, the quickest of three after a first, which makes the optimiser's state."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            clip_gradients(self.model, 1.0, ALONE)
            self.optimizer.step()
            seconds.append(time.perf_counter() - began)
        return min(seconds[1:])

    def state_bytes(self) -> int:
        """Of the weights and of what the optimiser, which has taken a step, keeps of each."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *(value for value in kept if isinstance(value, Tensor))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _batch(shape: Shape, rows: int, vocab_size: int) -> Batch:
    """Tokens at random, in documents of the shape's lengths: each length has its share of the rows."""
    generator = torch.Generator().manual_seed(0)
    token_BL = torch.randint(0, vocab_size, (rows, shape.row_length), generator=generator)
    lengths = list(shape.document_lengths)
    ends = list(itertools.accumulate(shape.document_lengths.values()))
    segments = []
    for row in range(rows):
        place = (row + 0.5) / rows * ends[-1]
        length = next(length for length, end in zip(lengths, ends, strict=True) if place <= end)
        segments.append(torch.arange(shape.row_length) // length)
    return Batch(token_BL, token_BL, torch.stack(segments))


def _most_allocated(work: Callable[[], object]) -> int:
    """The most bytes of tensors that `work` holds beyond those there were, by the profiler's record of every allocation."""
    gc.collect()
    only_cpu = [torch.profiler.ProfilerActivity.CPU]
    with _without_profiler_log(), torch.profiler.profile(activities=only_cpu, profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        changes = sorted(_memory_changes(json.loads(path.read_text(encoding="utf-8"))))
    return max(itertools.accumulate(size for _, size in changes), default=0)


def _memory_changes(trace: Mapping[str, list[dict[str, object]]]) -> Iterator[tuple[float, int]]:
    for event in trace["traceEvents"]:
        if event.get("name") == "[memory]":
            told = event["args"]
            assert isinstance(told, dict)
            yield float(str(event["ts"])), int(told["Bytes"])


@contextlib.contextmanager
def _without_profiler_log() -> Iterator[None]:
    """Torch's profiler writes of its beginning and end on standard error, past Python and whatever is asked of it."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _forget_peak() -> None:
    """From here on, the process's peak is counted anew (proc(5): clear_refs). Where that is forbidden, it is that of before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0


def resident_bytes() -> int:
    """Memory that this process holds. Before anything was made: Python, torch and their code."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
