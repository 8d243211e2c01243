"""How fast Fox trains, beside transformers with torch.compile: the same model, weights, data, batch and optimiser, in turns.

    python bench/train_speed.py [--quick] [--json FILE] [--profile FOLDER]

Two models: a Llama of 52 M (dim 512, 16 layers, 8/2 heads, vocabulary 32,000) at 2 x 1,024 tokens, and one of the size of
nanochat's recipe for processors (dim 384, 6 layers, vocabulary 8,192, 97 MFLOP a token; steps of 32 x 512 tokens as there), with
AdamW and, as there, with Muon. All sides take a step on the same batch, one after the other. The headline is
without document masks, which transformers is not given; another row has Fox with them, and one Fox as it was before it had attention
of its own. A second table says where the time of a step goes. Where the processor multiplies in bf16,
both train in it, else both in float32. transformers takes torch.optim.Muon, one matrix after another, as it is.

Fox's training keeps freed memory (mallopt, fox/train/allocator.py); transformers leaves the C library as it is, and is held
against Fox as its users run it: the goal is for that. What it would be with the same setting has a row and a ratio of its own beside it.

The losses of every row must agree within 1 %: those of each optimiser over all steps, and those with document masks over the first
two steps with a transformers that is given the masks as a table of all pairs, is not compiled, and is not timed.

nanochat itself is on no package index. On a machine whose bf16 peak was 805 GFLOP/s it reached 330 to 370 (its own count, full
attention, Muon), at best 46 % of the peak: the second model's share with Muon is held against that, as a share.

FLOPs a token, forward and backward: 6 N with N the weights that are multiplied (blocks and head); with attention over all
positions 6 N + 12 x layers x width x chunk; with causal attention half of that last part. The peak is the machine's own: the
best rate that a large matrix product reaches, measured before and after.
Exit code 0 where the goals are met, 1 where one is missed, 3 where transformers is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from results import record
from rich.console import Console
from rich.table import Table
from trainers import CASES, MASKS, PARTS

from fox.train.machine import resolve_precision

GOAL_RATIO = 1.5
NANOCHAT_SHARE = 0.46
MOST_DIFFERENCE = 0.01
"""Of losses."""
_CHECKS = {f"fox{MASKS}": f"transformers{MASKS}"}
"""Who takes a trainer's first steps, for its losses alone; the others' losses are held against those of their group's first."""
_CHECKED = 2
_OF_ALL_PAIRS = (0.0, 1.0, 0.5)
"""The share of all pairs of positions that attention is counted for: none, all, causal."""
_UNTIMED = 2
"""Steps that come first: they compile, and make the optimiser's state."""


@dataclass(frozen=True)
class Goals:
    """Of a case: Fox's speed over transformers', a share of the peak, whose steps have it, and what share of all pairs it counts."""

    ratio: float | None
    share: float
    trainer: str
    attention: float


GOALS = (Goals(GOAL_RATIO, 0.55, "fox", 0.0), Goals(None, 0.60, "fox, Muon", 1.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps of the first model")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--profile", type=Path, help="write torch's profile of two steps of each side into this folder")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each side that are timed")
    parser.add_argument("--case", type=int, help="only this case, from 0")
    arguments = parser.parse_args()
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: pip install 'foxlm[dev]'")
        return 3
    precision = resolve_precision("auto")
    rounds = 4 if arguments.quick else arguments.rounds
    figures: dict[str, Any] = {"precision": precision}
    table = Table("model", "trainer", "tokens/s", "spread", "6 N, of the peak", "full attention", "causal", "memory")
    parts = Table("model", "of a step's time", *PARTS)
    met = True
    headline = 0.0
    every = range(1 if arguments.quick else len(CASES))
    numbers = every if arguments.case is None else [arguments.case]
    cases = [CASES[number] for number in numbers]
    for number, case in zip(numbers, cases, strict=True):
        goals, groups = GOALS[number], _measure(number, rounds, arguments.profile)
        peak = max(group.peak for group in groups)
        for group in groups:
            for trainer, seconds in group.seconds.items():
                rate = case.tokens / statistics.median(seconds)
                shares = [rate * case.flops(attention) / peak for attention in _OF_ALL_PAIRS]
                spread = (max(seconds) - min(seconds)) / statistics.median(seconds)
                table.add_row(
                    case.name,
                    trainer,
                    f"{rate:,.0f}",
                    f"{spread:.0%}",
                    *(f"{share:.0%}" for share in shares),
                    f"{group.memory[trainer] / 1e9:.2f} GB",
                )
                parts.add_row(case.name, trainer, *(f"{share:.0%}" for share in group.parts[trainer].values()))
                figures[f"{case.name}: {trainer}, tokens/s"] = round(rate)
                if trainer == goals.trainer:
                    share = rate * case.flops(goals.attention) / peak
        for group, optimizer in zip(groups, ("", ", Muon on both sides"), strict=False):
            figures[f"{case.name}: ratio{optimizer}"] = f"{group.ratio:.2f}"
            figures[f"{case.name}: ratio{optimizer}, freed memory kept on both sides"] = f"{group.ratio_kept:.2f}"
            for trainer, differ in group.losses_differ.items():
                figures[f"{case.name}: losses of {trainer} differ by at most"] = f"{differ:.2%}"
                met &= differ < MOST_DIFFERENCE
        figures[f"{case.name}: share of the peak of {peak / 1e9:.0f} GFLOP/s"] = f"{share:.2f}"
        if goals.ratio is None:
            figures[f"{case.name}: share over nanochat's {NANOCHAT_SHARE}"] = f"{share / NANOCHAT_SHARE:.2f}"
        headline = headline or groups[0].ratio
        met &= share >= goals.share and groups[0].ratio >= (goals.ratio or 0)
    console = Console(width=110)
    console.print(table)
    console.print("MFLOP a token: 6 N; 6 N + 12 x layers x width x chunk (full attention); half of that part (causal)")
    for case in cases:
        told = ", ".join(f"{case.flops(attention) / 1e6:.0f}" for attention in _OF_ALL_PAIRS)
        console.print(f"  {case.name}: {told}", highlight=False)
    console.print(parts)
    for key, value in figures.items():
        print(f"{key}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    if not arguments.quick and arguments.case is None:
        record("train_speed.py", figures)
    print(f"train_speed: ratio {headline:.2f} (goal {GOAL_RATIO:.2f})")
    return 0 if met else 1


@dataclass(frozen=True)
class Measured:
    """A group of trainers: seconds of each one's timed steps, their memory in bytes, the peak in FLOP/s, and what follows."""

    seconds: dict[str, list[float]]
    memory: dict[str, int]
    peak: float
    ratio: float
    """Of Fox's speed to that of transformers as it comes."""
    ratio_kept: float
    """To that of transformers with freed memory kept."""
    parts: dict[str, dict[str, float]]
    """Where the time of each one's step goes."""
    losses_differ: dict[str, float]
    """The largest relative difference of each trainer's losses from transformers'."""


def _measure(case_number: int, rounds: int, profile: Path | None) -> list[Measured]:
    """Each group of a case, one after the other: all of its trainers at once would take too much memory."""
    return [_measure_group(case_number, group, rounds, profile) for group in CASES[case_number].groups]


def _measure_group(case_number: int, group: tuple[str, ...], rounds: int, profile: Path | None) -> Measured:
    """Trainers take their steps in turns. Each has a process of its own, as it would have with its user."""
    precision = resolve_precision("auto")
    peak = _peak(precision)
    losses: dict[str, list[float]] = {}
    for check in (_CHECKS[name] for name in group if name in _CHECKS):
        trainer = Trainer(check, case_number)
        losses[check] = [trainer.step(number)[1] for number in range(_CHECKED)]
        trainer.end()
    trainers = {name: Trainer(name, case_number) for name in group}
    seconds: dict[str, list[float]] = {name: [] for name in group}
    losses |= {name: [] for name in group}
    for number in range(_UNTIMED + rounds):
        for name, trainer in trainers.items():
            took, loss = trainer.step(number)
            seconds[name].append(took)
            losses[name].append(loss)
    for name, trainer in trainers.items():
        trainer.profile((profile / f"{case_number} {name}.txt".replace(" ", "_")) if profile else None)
        trainer.end()
    timed = {name: values[_UNTIMED:] for name, values in seconds.items()}
    peer, peer_kept, ours = group[:3]
    return Measured(
        seconds=timed,
        memory={name: trainer.peak_memory_bytes for name, trainer in trainers.items()},
        parts={name: trainer.parts for name, trainer in trainers.items()},
        peak=max(peak, _peak(precision)),
        ratio=_ratio(timed[peer], timed[ours]),
        ratio_kept=_ratio(timed[peer_kept], timed[ours]),
        losses_differ={name: _differ(losses[_CHECKS.get(name, peer)], losses[name]) for name in group[1:]},
    )


def _differ(theirs: list[float], ours: list[float]) -> float:
    """The largest relative difference of the losses that both have."""
    return max(abs(b / a - 1) for a, b in zip(theirs, ours, strict=False))


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """The median of what their steps took over what ours took just after."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


class Trainer:
    """A trainer in a process of its own, that takes a step when it is told to."""

    def __init__(self, name: str, case: int) -> None:
        words = [sys.executable, str(Path(__file__).with_name("trainers.py")), name, str(case)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak_memory_bytes = 0
        self.parts: dict[str, float] = {}

    def step(self, number: int) -> tuple[float, float]:
        """Seconds, and the loss before the step."""
        told = self._ask(f"{number}")
        return told["seconds"], told["loss"]

    def profile(self, path: Path | None) -> None:
        """Measure where the time of a step goes. torch's own table of it goes to `path`."""
        self.parts = self._ask(f"profile {path or ''}")

    def end(self) -> None:
        self.peak_memory_bytes = self._ask("end")["memory"]
        self._process.wait()

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} has ended")
        told: dict[str, Any] = json.loads(answer)
        return told


def _peak(precision: str) -> float:
    """FLOP/s of the best of a few large matrix products in the type that is trained in."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for size in (2048, 4096):
        left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
        for _ in range(5):
            began = time.perf_counter()
            torch.mm(left, right)
            best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    sys.exit(main())
