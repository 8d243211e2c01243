"""How fast attention is, forward and backward, beside torch's own: bf16 on this processor, in turns.

    python bench/attention.py [--quick] [--json FILE]

Three shapes: those of bench/train_speed.py's two models, and Fox-1's at 2,048 tokens; causal, and with documents of 300 tokens on the
average. "fused" is torch's scaled_dot_product_attention (with documents: given the mask), "by products" what Fox does where it has no
kernel of its own. FLOPs are those of the scores that a causal token sees, 14 x tokens^2 / 2 x head size a head (two products
forward, five backward); with documents the same count is taken, so that its rate tells what skipping gains.
Goal: at least three times the fused one's rate without documents, the median over the shapes. Exit code 3 where there is no such kernel.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results import record
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fox.kernels import attention
from fox.kernels.native.attention import attend_in_documents, can_attend
from fox.train.allocator import keep_freed_memory
from fox.train.machine import matrix_peak_flops

GOAL = 3.0
SHAPES = {"52 M": (2, 1024, 8, 2, 64), "nanochat's size": (8, 512, 6, 6, 64), "Fox-1": (1, 2048, 16, 4, 128)}
"""Rows, tokens, query heads, key/value heads, head size."""
_MEAN_DOCUMENT = 300
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not can_attend(torch.device("cpu"), torch.bfloat16, 64):
        print("This processor has no AVX-512 with bf16 products (or AMX, too), or there is no compiler.")
        return 3
    keep_freed_memory()
    peak = matrix_peak_flops(torch.device("cpu"), True)
    table = Table("shape", "documents", "attention", "ms", "spread", "GFLOP/s", "of the peak")
    figures: dict[str, Any] = {"peak, GFLOP/s": round(peak / 1e9)}
    ratios = []
    for name, shape in SHAPES.items():
        for documents in (False, True):
            seconds = _in_turns(shape, documents, 5 if arguments.quick else 25)
            rows, tokens, heads, _, size = shape
            flops = 14 * rows * heads * tokens**2 / 2 * size
            for kind, taken in seconds.items():
                middle = statistics.median(taken)
                table.add_row(
                    name, "yes" if documents else "no", kind, f"{middle * 1e3:.1f}", f"{(max(taken) - min(taken)) / middle:.0%}",
                    f"{flops / middle / 1e9:.0f}", f"{flops / middle / peak:.0%}",
                )  # fmt: skip
            ratio = statistics.median(a / b for a, b in zip(seconds["fused"], seconds["ours"], strict=True))
            told = f"{name}{', documents' if documents else ''}"
            figures[f"{told}: ours over fused"] = f"{ratio:.1f}"
            figures[f"{told}: of the peak"] = f"{flops / statistics.median(seconds['ours']) / peak:.2f}"
            if not documents:
                ratios.append(ratio)
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("attention.py", figures)
    print(f"attention: ratio {statistics.median(ratios):.2f} (goal {GOAL:.2f})")
    return 0 if statistics.median(ratios) >= GOAL else 1


def _in_turns(shape: tuple[int, ...], documents: bool, rounds: int) -> dict[str, list[float]]:
    rows, tokens, heads, kv_heads, size = shape
    generator = torch.Generator().manual_seed(0)

    def drawn(number: int) -> Tensor:
        made = torch.randn(rows, tokens, number, size, generator=generator).bfloat16()
        return made.transpose(1, 2).requires_grad_()

    q, k, v, weight = drawn(heads), drawn(kv_heads), drawn(kv_heads), drawn(heads).detach()
    first_BT = torch.rand(rows, tokens, generator=generator) < (1 / _MEAN_DOCUMENT if documents else 0)
    begins_BT = torch.where(first_BT, torch.arange(tokens), 0).cummax(1).values.int()
    place_T = torch.arange(tokens)
    seen_B1TT = (place_T <= place_T[:, None]) & (place_T >= begins_BT[:, None, :, None])
    added_B1TT = attention.additive(seen_B1TT, torch.bfloat16)

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=added_B1TT if documents else None, is_causal=not documents, enable_gqa=True
        )

    kinds: dict[str, Attend] = {"fused": fused, "ours": lambda q, k, v: attend_in_documents(q, k, v, begins_BT)}
    if tokens <= attention._MOST_TOKENS_BY_PRODUCTS:
        kinds["by products"] = lambda q, k, v: attention.attend(q, k, v, added_B1TT)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds + 2):
        for kind, attend in kinds.items():
            began = time.perf_counter()
            torch.autograd.grad(attend(q, k, v), (q, k, v), weight)
            seconds[kind].append(time.perf_counter() - began)
    return {kind: taken[2:] for kind, taken in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
