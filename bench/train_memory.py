"""In how much memory Fox-1's head is learnt, and the whole of Fox-1 is trained: one step of 2,048 tokens with bf16 weights.

    python bench/train_memory.py [--quick] [--json FILE] [--steps N]

Each part runs in a process of its own, whose peak memory is told. The head: one forward and backward of 2,048 x 256,000 at 8,192
tokens, with weights and gradients in bf16, and again in float32 as `auto` precision has them, both multiplied in bf16 where the
processor does; what it takes beyond the weights, and, where all scores fit at once, its loss and gradients beside the plain ones in
float32. The whole: `fox pretrain bench/train_memory/whole.toml`, Fox-1's model from random weights on ../shared/data/text (without
it: exit code 3), with its checkpoints and its scoring, in no more than 24 GB. --quick is the heads at 2,048 tokens and a model of 4
blocks with a vocabulary of 32,000 for 3 steps.

Goals: 3 GB beyond the head's weights, of either type (of float32, 2.1 GB are the gradient); from the plain loss and gradients 1e-5 in
float32, and 2^-7 with bf16 products, whose every factor is rounded by up to 2^-9; the whole in 24 GB, its loss falling.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from results import ROOT, record
from torch import Tensor

from fox.model.loss import plain_summed_loss, summed_loss
from fox.model.loss_by_vocabulary import summed_loss_by_vocabulary
from fox.train.allocator import keep_freed_memory
from fox.train.machine import product_type, resolve_precision

GB = 1e9
HEAD_GOAL = 3 * GB
WHOLE_GOAL = 24 * GB
EQUAL_GOAL = 1e-5
BF16_EQUAL_GOAL = 2**-7
PRECISION = "bf16-weights"
RECIPE = Path(__file__).with_name("train_memory") / "whole.toml"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--steps", type=int, help="of the whole model: 20, or 3 with --quick")
    arguments.add_argument("--one", nargs=3, metavar=("PART", "QUICK", "STEPS"), help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        part, quick, steps = given.one[0], given.one[1] == "quick", int(given.one[2])
        parts = {
            "head": lambda: head(quick, PRECISION),
            "auto head": lambda: head(quick, "auto"),
            "equal": lambda: equal(quick),
            "whole": lambda: whole(quick, steps),
        }
        print(json.dumps(parts[part]()))
        return 0
    if not (ROOT.parent / "shared" / "data" / "text").is_dir():
        print("../shared/data/text is not there")
        return 3
    steps = given.steps or (3 if given.quick else 20)
    made = {part: in_own_process(part, given.quick, steps) for part in ("head", "auto head", "equal", "whole")}
    return conclude(made, given.quick, given.json)


def conclude(made: dict[str, Any], quick: bool, as_json: Path | None) -> int:
    one, auto, same, all_of_it = made["head"], made["auto head"], made["equal"], made["whole"]
    losses = all_of_it["losses"]
    result = {
        "head, tokens": f"{one['tokens']:,}",
        "head, GB beyond its weights": f"{one['beyond_bytes'] / GB:.2f} of {HEAD_GOAL / GB:.0f}",
        "head, s": f"{one['s']:.0f}",
        "head in auto precision, GB beyond its weights": f"{auto['beyond_bytes'] / GB:.2f} of {HEAD_GOAL / GB:.0f}",
        "head in auto precision, s": f"{auto['s']:.0f}",
        "head, largest relative difference from the plain loss and gradients": f"{same['difference']:.1e}",
        "head with bf16 products, the same": f"{same['bf16_difference']:.1e} of {BF16_EQUAL_GOAL:.1e}",
        "whole, parameters": f"{all_of_it['parameters']:,}",
        "whole, steps of 2,048 tokens": len(losses),
        "whole, s a step": f"{all_of_it['seconds'] / len(losses):.0f}",
        "whole, loss": f"{losses[0]:.2f} to {losses[-1]:.2f}",
        "whole, GB in its steps": f"{all_of_it['steps_bytes'] / GB:.2f}",
        "whole, peak GB, saved and scored": f"{all_of_it['peak_bytes'] / GB:.2f} of {WHOLE_GOAL / GB:.0f}",
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    if not quick:
        record("train_memory.py", result)
    if as_json:
        as_json.write_text(json.dumps(made, indent=2))
    falls = len(losses) < 3 or sum(losses[-3:]) / 3 < losses[0]
    met = (
        one["beyond_bytes"] <= HEAD_GOAL
        and auto["beyond_bytes"] <= HEAD_GOAL
        and same["difference"] <= EQUAL_GOAL
        and same["bf16_difference"] <= BF16_EQUAL_GOAL
        and all_of_it["peak_bytes"] <= WHOLE_GOAL
        and falls
    )
    ratio = one["beyond_bytes"] / HEAD_GOAL
    print(f"train_memory: ratio {ratio:.2f} (goal 1.00 or less), whole model {all_of_it['peak_bytes'] / GB:.1f} GB")
    return 0 if met else 1


def head(quick: bool, precision: str) -> dict[str, Any]:
    """One forward and backward of the head alone, in that train.precision."""
    tokens = 2048 if quick else 8192
    weight_type = torch.bfloat16 if precision == "bf16-weights" else torch.float32
    generator = torch.Generator().manual_seed(0)
    weight_VD = torch.empty(256_000, 2048, dtype=weight_type)
    for rows in weight_VD.split(8192):
        rows.copy_(torch.randn(rows.shape, generator=generator) * 0.02)
    weight_VD.requires_grad_()
    hidden_ND = torch.randn(tokens, 2048, generator=generator).requires_grad_()
    target_N = torch.randint(0, 256_000, (tokens,), generator=generator)
    keep_freed_memory()  # as training does; what was freed so far is given back
    few_ND = hidden_ND[:256].detach().to(product_type(resolve_precision(precision)))
    (few_ND @ few_ND.T).sum()  # what the library of products takes at its first is no loss's
    with PeakMemory() as peak:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=few_ND.dtype == torch.bfloat16):
            loss = summed_loss(hidden_ND, weight_VD, target_N) / tokens
        loss.backward()
        seconds = time.perf_counter() - started
    assert weight_VD.grad is not None and weight_VD.grad.dtype == weight_type
    return {"tokens": tokens, "beyond_bytes": peak.beyond_bytes, "s": seconds}


def equal(quick: bool) -> dict[str, Any]:
    """The largest differences of loss and gradients from the plain ones in float32, relative to their size: ours in float32, and
    with bf16 products. The second vocabulary's head is a large one to `summed_loss`."""
    differences, of_bf16 = [], []
    for vocab_size, losses in (
        (20_000 if quick else 64_000, (summed_loss, summed_loss_by_vocabulary)),
        (140_000, (summed_loss,)),
    ):
        generator = torch.Generator().manual_seed(0)
        hidden_ND = torch.randn(1024, 512, generator=generator).requires_grad_()
        weight_VD = (torch.randn(vocab_size, 512, generator=generator) * 0.02).requires_grad_()
        parts = hidden_ND, weight_VD, torch.randint(0, vocab_size, (1024,), generator=generator)
        plain = loss_and_gradients(plain_summed_loss, *parts)
        for loss in losses:
            differences += apart(loss_and_gradients(loss, *parts), plain)
            with torch.autocast("cpu", torch.bfloat16):
                of_bf16 += apart(loss_and_gradients(loss, *parts), plain)
    return {"difference": max(differences), "bf16_difference": max(of_bf16)}


def loss_and_gradients(loss: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> list[Tensor]:
    total = loss(hidden_ND, weight_VD, target_N) / len(target_N)
    return [total.detach(), *torch.autograd.grad(total, (hidden_ND, weight_VD))]


def apart(ours: list[Tensor], plain: list[Tensor]) -> list[float]:
    return [((one - other).norm() / other.norm()).item() for one, other in zip(ours, plain, strict=True)]


def whole(quick: bool, steps: int) -> dict[str, Any]:
    """Steps of the whole model by `fox pretrain`, with its checkpoints and the scoring of held-out text after them."""
    words = [f"stage.all.tokens={2048 * steps}"]
    if quick:
        words += ["model.num_hidden_layers=4", "tokenizer.vocab_size=32_000"]
    options = [part for word in words for part in ("-o", word)]
    with tempfile.TemporaryDirectory() as run:
        for step in ("tokenizer", "data", "pretrain"):
            command = [sys.executable, "-m", "fox", step, str(RECIPE), "--out", run, *options]
            subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        made = Path(run) / "pretrain"
        rows = [json.loads(line) for line in (made / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        facts = json.loads((Path(run) / "manifests" / "pretrain.json").read_text(encoding="utf-8"))["facts"]
    return {
        "parameters": facts["parameters"],
        "losses": [row["loss"] for row in rows],
        "seconds": rows[-1]["seconds"],
        "steps_bytes": rows[-1]["memory_bytes"],
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


class PeakMemory:
    """The most memory of this process within the block, beyond what it had before it."""

    def __enter__(self) -> PeakMemory:
        self._before = self._most = resident_bytes()
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()
        # The system's own mark misses nothing, where it is higher than all that was there before.
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.beyond_bytes = max(self._most, highest) - self._before

    def _look(self) -> None:
        while not self._done.wait(0.01):
            self._most = max(self._most, resident_bytes())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_own_process(part: str, quick: bool, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", part, "quick" if quick else "full", str(steps)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    sys.exit(main())
