"""Does a released model learn new text by recipes/continue.toml, and what does it forget?

    python bench/continue_smollm2.py [--minutes 20] [--quick] [--items 100] [--data FOLDER] [--json FILE] [--out FOLDER]

Trains SmolLM2-135M-Instruct (its 4-bit file, as bench/real_weights.py has it) on novels with a tenth of Wikipedia as replay, for so
many minutes, and measures before and after: bits per byte of held-out text of both, and of the right answers of six sets of
questions, given the question (of each set's first items; one answer, no choices: this is no accuracy). FOLDER has text/*.jsonl.gz and
eval/SET/*.jsonl.gz; without it, it is ../shared/data beside this repository. Nothing is fetched.
Exit code 0 where the novels' bits per byte fall, 1 where they do not, 3 where weights or data are missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from real_weights import check, weights
from results import ROOT, record
from rich.console import Console
from rich.table import Table

from fox.eval.bits_per_byte import model_bits
from fox.model.directory import load_model
from fox.train.machine import resolve_precision

Item = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="of training")
    parser.add_argument("--quick", action="store_true", help="a minute of training, few items")
    parser.add_argument("--items", type=int, default=100, help="of each set of questions")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--out", type=Path, help="keep the run in this folder, which must be new")
    arguments = parser.parse_args()
    if wrong := check(weights()):
        print(wrong)
        return 3
    missing = [name for name in ("text", "eval") if not (arguments.data / name).is_dir()]
    if missing:
        print(f"{arguments.data / missing[0]} is missing: name the data with --data")
        return 3
    minutes, items = (1.0, 6) if arguments.quick else (arguments.minutes, arguments.items)
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.out or Path(folder) / "continue"
        if run.exists():
            print(f"{run} is there already")
            return 2
        tokens = _train(run, arguments.data, minutes, arguments.quick)
        results = json.loads((run / "eval" / "results.json").read_text(encoding="utf-8"))
        before, after = (answers_bits_per_byte(path, arguments.data, items) for path in (weights(), run / "model"))
    scores = results["bits_per_byte"]
    rows = [(f"{source}, held out", scores["start"][source], scores["base"][source]) for source in ("own", "replay")]
    rows += [(f"{name}, right answers", before[name], after[name]) for name in SETS]
    table = Table("bits per byte", "before", "after", "change")
    for name, was, now in rows:
        table.add_row(name, f"{was:.4f}", f"{now:.4f}", f"{now / was - 1:+.1%}")
    Console(width=100).print(table)
    figures = {name: f"{was:.4f} -> {now:.4f}" for name, was, now in rows}
    figures = {"minutes": f"{minutes:g}", "tokens": f"{tokens:,}", "items a set": str(items), **figures}
    if not arguments.quick:
        record("continue_smollm2.py", figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    ratio = scores["start"]["own"] / scores["base"]["own"]
    print(f"continue_smollm2: ratio {ratio:.3f} (goal 1.00)")
    return 0 if ratio > 1 else 1


def _train(run: Path, data: Path, minutes: float, quick: bool) -> int:
    """Train for so many minutes by the speed of a few first steps, which are thrown away; how many tokens that were."""
    batch = 512 if quick else 2048
    text = data / "text"
    overrides = [
        f"model.start_from={weights()}", f"source.own.path={text}", "source.own.files=books-00*",
        f"source.replay.path={text}", "source.replay.files=wikipedia-00*", "source.replay.kind=text",
        f"stage.own.batch_tokens={batch}", *(["train.compile=false", "stage.own.chunk_length=128"] if quick else []),
        f"eval.heldout_tokens={4000 if quick else 20000}",
    ]  # fmt: skip
    first = 3 if quick else 5
    _fox(
        "pretrain", run, [*overrides, *_length(first * batch, batch), "eval.heldout_tokens=100"], ["tokenizer", "data"]
    )
    rows = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speed = statistics.median(row["tokens_per_second"] for row in rows[1:])
    tokens = max(4, round(60 * minutes * speed / batch)) * batch
    _fox("run", run, [*overrides, *_length(tokens, batch)], [], "--redo", "pretrain")
    return tokens


def _length(tokens: int, batch: int) -> list[str]:
    """A tenth of the tokens to warm up, the later half to decay: the recipe's own shares."""
    warmup, decay = max(batch, tokens // 10), tokens // 2
    return [f"stage.own.tokens={tokens}", f"schedule.warmup_tokens={warmup}", f"schedule.decay_tokens={decay}"]


def _fox(command: str, run: Path, overrides: list[str], before: list[str], *words: str) -> None:
    changed = [word for override in overrides for word in ("-o", override)]
    for step in [*before, command]:
        extra = words if step == command else ()
        line = [sys.executable, "-m", "fox", step, "recipes/continue.toml", "--out", str(run), *changed, *extra]
        subprocess.run(line, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def answers_bits_per_byte(path: Path, data: Path, items: int) -> dict[str, float]:
    """Of each set, the bits that the right answers of its first items cost, given their questions, over their bytes."""
    model, tokenizer = load_model(path)
    found = {}
    for name, (file, parts) in SETS.items():
        documents, places, size = [], [], 0
        for question, answer in map(parts, islice(_read(data / "eval" / file), items)):
            told, said = tokenizer.encode(question), tokenizer.encode(answer, at_start=False)
            documents.append(np.array(told + said, dtype=np.int64))
            places.append(len(told))
            size += len(answer.encode())
        bits = model_bits(model, documents, resolve_precision("auto"))
        found[name] = sum(float(of[place:].sum()) for of, place in zip(bits, places, strict=True)) / size
    return found


def _read(path: Path) -> Iterator[Item]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _arc(item: Item) -> tuple[str, str]:
    choices = item["choices"]
    return _asked(item["question"]), f" {choices['text'][choices['label'].index(item['answerKey'])]}"


def _hellaswag(item: Item) -> tuple[str, str]:
    begun = f"{item['activity_label']}: {item['ctx_a']} {item['ctx_b'].capitalize()}".rstrip()
    return begun, f" {item['endings'][int(item['label'])]}"


def _truthfulqa(item: Item) -> tuple[str, str]:
    right = item["mc1_targets"]
    return _asked(item["question"]), f" {right['choices'][right['labels'].index(1)]}"


def _winogrande(item: Item) -> tuple[str, str]:
    before, after = item["sentence"].split("_", 1)
    return before + item[f"option{item['answer']}"], after  # what follows the right name


def _asked(question: str) -> str:
    return f"Question: {question}\nAnswer:"


SETS: dict[str, tuple[str, Callable[[Item], tuple[str, str]]]] = {
    "ARC-Challenge": ("arc_challenge/test.jsonl.gz", _arc),
    "HellaSwag": ("hellaswag/validation.jsonl.gz", _hellaswag),
    "TruthfulQA": ("truthfulqa/mc_validation.jsonl.gz", _truthfulqa),
    "MMLU": ("mmlu/test.jsonl.gz", lambda item: (_asked(item["question"]), f" {item['choices'][item['answer']]}")),
    "WinoGrande": ("winogrande/validation.jsonl.gz", _winogrande),
    "GSM8K": ("gsm8k/test.jsonl.gz", lambda item: (_asked(item["question"]), f" {item['answer']}")),
}
"""Each set's file, and how an item becomes a question and its right answer."""


if __name__ == "__main__":
    sys.exit(main())
