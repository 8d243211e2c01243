"""How fast Fox trains, beside transformers with torch.compile: the same model, weights, data, batch and optimiser, in turns.

    python bench/train_speed.py [--quick] [--json FILE] [--profile FOLDER]

Two models: a Llama of 52 M (dim 512, 16 layers, 8/2 heads, vocabulary 32,000) at 2 x 1,024 tokens, and one of the size of
nanochat's recipe for processors (dim 384, 6 layers, vocabulary 8,192, 97 MFLOP a token; steps of 32 x 512 tokens as there), with
AdamW and, as there, with Muon. All sides take a step on the same batch, one after the other. The headline is
without document masks, which transformers is not given; another row has Fox with them. Where the processor multiplies in bf16,
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from results import record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fox.model import ModelConfig, Transformer
from fox.model.loss import IGNORED, summed_loss
from fox.recipe.schema import Optimizer
from fox.train.allocator import keep_freed_memory
from fox.train.compilation import compile_blocks
from fox.train.machine import peak_memory_bytes, resolve_precision
from fox.train.optimizer import make_optimizer

GOAL_RATIO, GOAL_SHARE = 1.5, 0.55
GOAL_SMALL_SHARE = 0.60
NANOCHAT_SHARE = 0.46
MOST_DIFFERENCE = 0.01
"""Of losses."""
_SETTINGS = Optimizer(peak_learning_rate=1e-3)
_MUON = Optimizer(peak_learning_rate=1e-3, name="muon")
_MEAN_DOCUMENT = 300
"""Tokens of a document in the rows with document masks, about those of a web page's median."""


@dataclass(frozen=True)
class Case:
    """A model and its batch."""

    name: str
    config: ModelConfig
    rows: int
    length: int
    goal_ratio: float | None
    goal_share: float
    groups: tuple[tuple[str, ...], ...]
    """Trainers that take turns. The first is transformers as it comes, the second the same with freed memory kept, the third Fox."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def flops(self, attention: float) -> float:
        """Of one token, forward and backward; `attention` is the share of all pairs of positions that counts."""
        config = self.config
        of_layer = config.hidden_size * config.head_dim * 2 * (config.num_attention_heads + config.num_key_value_heads)
        of_layer += 3 * config.hidden_size * config.intermediate_size
        weights = config.num_hidden_layers * of_layer + config.vocab_size * config.hidden_size
        width = config.num_attention_heads * config.head_dim
        return 6.0 * weights + attention * 12.0 * config.num_hidden_layers * width * self.length


def _config(
    width: int, feed_forward: int, layers: int, heads: int, kv_heads: int, vocab: int, chunk: int
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width // heads, max_position_embeddings=chunk,
        rope_theta=10_000.0, rms_norm_eps=1e-5, initializer_range=0.02, tie_word_embeddings=True,
    )  # fmt: skip


_KEPT = ", with freed memory kept"
_WITH_ADAMW = ("transformers", f"transformers{_KEPT}", "fox", "fox, document masks")
_WITH_MUON = ("transformers, Muon", f"transformers, Muon{_KEPT}", "fox, Muon")
_CHECKS = {"fox, document masks": "transformers, document masks"}
"""Who takes a trainer's first steps, for its losses alone; the others' losses are held against those of their group's first."""
_CHECKED = 2
_UNTIMED = 2
"""Steps that come first: they compile, and make the optimiser's state."""
CASES = (
    Case(
        "52 M, 2 x 1,024", _config(512, 1024, 16, 8, 2, 32_000, 1024), 2, 1024, GOAL_RATIO, GOAL_SHARE, (_WITH_ADAMW,)
    ),
    Case(
        "nanochat's size, 32 x 512", _config(384, 1024, 6, 6, 6, 8192, 512), 32, 512, None, GOAL_SMALL_SHARE,
        (_WITH_ADAMW, _WITH_MUON),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, what follows each, and the documents' numbers."""

    token_BL: Tensor
    target_BL: Tensor
    segment_BL: Tensor


Step = Callable[[Batch], float]
"""Takes one step of the optimiser and gives the mean loss before it, in nats."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--profile", type=Path, help="write a profile of two steps of each side into this folder")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each side that are timed")
    parser.add_argument("--case", type=int, help="only this case, from 0")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments.worker, CASES[arguments.case])
        return 0
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: pip install 'foxlm[dev]'")
        return 3
    precision = resolve_precision("auto")
    rounds = 4 if arguments.quick else arguments.rounds
    figures: dict[str, Any] = {"precision": precision}
    table = Table("model", "trainer", "tokens/s", "spread", "6 N, of the peak", "full attention", "causal", "memory")
    met = True
    headline = 0.0
    for number in range(len(CASES)) if arguments.case is None else [arguments.case]:
        case, groups = CASES[number], _measure(number, rounds, arguments.profile)
        peak = max(group.peak for group in groups)
        for group in groups:
            for trainer, seconds in group.seconds.items():
                rate = case.tokens / statistics.median(seconds)
                shares = [rate * case.flops(attention) / peak for attention in (0.0, 1.0, 0.5)]
                spread = (max(seconds) - min(seconds)) / statistics.median(seconds)
                table.add_row(
                    case.name,
                    trainer,
                    f"{rate:,.0f}",
                    f"{spread:.0%}",
                    *(f"{share:.0%}" for share in shares),
                    f"{group.memory[trainer] / 1e9:.2f} GB",
                )
                figures[f"{case.name}: {trainer}, tokens/s"] = round(rate)
                if trainer == ("fox" if case.goal_ratio else "fox, Muon"):
                    share = shares[0] if case.goal_ratio else shares[1]
        for group, optimizer in zip(groups, ("", ", Muon on both sides"), strict=False):
            figures[f"{case.name}: ratio{optimizer}"] = f"{group.ratio:.2f}"
            figures[f"{case.name}: ratio{optimizer}, freed memory kept on both sides"] = f"{group.ratio_kept:.2f}"
            for trainer, differ in group.losses_differ.items():
                figures[f"{case.name}: losses of {trainer} differ by at most"] = f"{differ:.2%}"
                met &= differ < MOST_DIFFERENCE
        figures[f"{case.name}: share of the peak of {peak / 1e9:.0f} GFLOP/s"] = f"{share:.2f}"
        if not case.goal_ratio:
            figures[f"{case.name}: share over nanochat's {NANOCHAT_SHARE}"] = f"{share / NANOCHAT_SHARE:.2f}"
        headline = headline or groups[0].ratio
        met &= share >= case.goal_share and groups[0].ratio >= (case.goal_ratio or 0)
    Console(width=110).print(table)
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
        trainer.end(None)
    trainers = {name: Trainer(name, case_number) for name in group}
    seconds: dict[str, list[float]] = {name: [] for name in group}
    losses |= {name: [] for name in group}
    for number in range(_UNTIMED + rounds):
        for name, trainer in trainers.items():
            took, loss = trainer.step(number)
            seconds[name].append(took)
            losses[name].append(loss)
    for name, trainer in trainers.items():
        trainer.end((profile / f"{case_number} {name}.txt".replace(" ", "_")) if profile else None)
    timed = {name: values[_UNTIMED:] for name, values in seconds.items()}
    peer, peer_kept, ours = group[:3]
    return Measured(
        seconds=timed,
        memory={name: trainer.peak_memory_bytes for name, trainer in trainers.items()},
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
        words = [sys.executable, __file__, "--worker", name, "--case", str(case)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.peak_memory_bytes = 0

    def step(self, number: int) -> tuple[float, float]:
        """Seconds, and the loss before the step."""
        told = self._ask(f"{number}")
        return told["seconds"], told["loss"]

    def end(self, profile: Path | None) -> None:
        if profile:
            self._ask(f"profile {profile}")
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


def _work(name: str, case: Case) -> None:
    """Be a trainer: answer each line with a line."""
    model = Transformer(case.config)
    model.initialise(torch.Generator().manual_seed(0))
    precision = resolve_precision("auto")
    settings = _MUON if name in _WITH_MUON else _SETTINGS
    with_documents = name.endswith("document masks")
    if name.startswith("transformers"):
        if name.endswith(_KEPT):
            keep_freed_memory()
        step = _their_step(_theirs(case, model), precision, settings, with_documents)
    else:
        step = _our_step(model, precision, settings, with_documents)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "end":
            print(json.dumps({"memory": peak_memory_bytes()}), flush=True)
            return
        if word == "profile":
            _write_profile(Path(rest), step, _batch(case, 0))
            print("{}", flush=True)
            continue
        batch = _batch(case, int(word))
        began = time.perf_counter()
        loss = step(batch)
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


def _our_step(model: Transformer, precision: str, settings: Optimizer, with_documents: bool) -> Step:
    keep_freed_memory()
    optimizer = make_optimizer(model, settings, precision)
    compile_blocks(model)

    def step(batch: Batch) -> float:
        target_BL = _targets_within_documents(batch) if with_documents else batch.target_BL
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            hidden_BLD = model(batch.token_BL, batch.segment_BL if with_documents else None)
            loss = summed_loss(hidden_BLD.flatten(0, 1), model.output_weight_VD, target_BL.flatten())
            loss = loss / (target_BL != IGNORED).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _theirs(case: Case, ours: Transformer) -> Any:
    """transformers' Llama with the same weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {key: value for key, value in vars(case.config).items() if key not in ("rope_scaling", "qk_norm")}
    theirs = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa", use_cache=False))
    missing, unexpected = theirs.model.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return theirs


def _their_step(model: Any, precision: str, settings: Optimizer, with_documents: bool) -> Step:
    compiled = model if with_documents else torch.compile(model)  # with documents it is a check, of a few steps
    inner = [parameter for parameter in model.model.layers.parameters() if parameter.ndim > 1]
    of_muon = inner if settings.name == "muon" else []
    decayed = [one for one in model.parameters() if one.ndim > 1 and not any(one is other for other in of_muon)]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=settings.peak_learning_rate,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            fused=True,
        )
    ]
    if of_muon:
        optimizers.append(
            torch.optim.Muon(
                of_muon,
                lr=settings.peak_learning_rate,
                weight_decay=settings.weight_decay,
                momentum=settings.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )

    def step(batch: Batch) -> float:
        target_BL, mask_B1LL = batch.target_BL, None
        if with_documents:
            target_BL = _targets_within_documents(batch)
            mask_B1LL = (batch.segment_BL[:, None, :, None] == batch.segment_BL[:, None, None, :]).tril()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = compiled(batch.token_BL, attention_mask=mask_B1LL, labels=target_BL, shift_labels=target_BL).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.item())

    return step


def _targets_within_documents(batch: Batch) -> Tensor:
    """What each token is to be followed by; nothing at a document's end, whose next token is another's first."""
    ends_BL = batch.segment_BL[:, 1:] != batch.segment_BL[:, :-1]
    target_BL = batch.target_BL.clone()
    target_BL[:, :-1][ends_BL] = IGNORED
    return target_BL


def _batch(case: Case, number: int) -> Batch:
    """Tokens as frequent as words are (Zipf), the same for all trainers, in documents of random lengths."""
    generator = torch.Generator().manual_seed(number)
    frequency_V = 1.0 / torch.arange(2, case.config.vocab_size + 2)
    token_BL = torch.multinomial(frequency_V, case.rows * (case.length + 1), replacement=True, generator=generator)
    token_BL = token_BL.view(case.rows, case.length + 1)
    ends_BL = torch.rand(case.rows, case.length, generator=generator) < 1 / _MEAN_DOCUMENT
    return Batch(token_BL[:, :-1].contiguous(), token_BL[:, 1:].contiguous(), ends_BL.cumsum(1))


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


def _write_profile(path: Path, step: Step, batch: Batch) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(2):
            step(batch)
    table = profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60)
    path.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
