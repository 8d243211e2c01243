"""A finished run of the tiny recipe with made-up numbers, written as the steps write theirs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from fox.recipe import load_recipe

RECIPE = Path(__file__).parents[3] / "recipes/tiny.toml"
HOSTILE = "<script>alert(1)</script> & $\\frac{1}$ \"'><img src=http://evil.example/x onerror=alert(2)>"

# name, tokens, chunk length, batch tokens, mix
STAGES: list[tuple[str, float, dict[str, int], int, dict[str, float]]] = [
    ("foundation", 800e3, {"speeches": 128}, 4096, {"speeches": 1.0}),
    ("longer", 900e3, {"speeches": 256, "chats": 128}, 8192, {"speeches": 0.9, "chats": 0.1}),
    ("quality", 300e3, {"speeches": 512, "chats": 512}, 8192, {"speeches": 0.7, "chats": 0.3}),
]
TUNE = [("tune", 500e3, {"chats": 512}, 8192, {"chats": 1.0})]


def training_rows(stages: list[Any], start_loss: float, end_loss: float, peak: float) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl with a loss that falls as losses do, and noise."""
    dice = random.Random(7)
    all_tokens = sum(stage[1] for stage in stages)
    rows: list[dict[str, Any]] = []
    tokens = seconds = 0.0
    seen = dict.fromkeys(("speeches", "chats"), 0.0)
    for at, (name, stage_tokens, chunk_length, batch_tokens, mix) in enumerate(stages):
        for _ in range(round(stage_tokens / batch_tokens)):
            tokens += batch_tokens
            speed = 5600 * (1 - 0.12 * at) * dice.uniform(0.94, 1.03)
            seconds += batch_tokens / speed
            done = tokens / all_tokens
            chats = round(batch_tokens * mix.get("chats", 0) * dice.uniform(0.8, 1.2)) if len(mix) > 1 else 0
            drawn = (
                {"speeches": batch_tokens - chats, "chats": chats} if len(mix) > 1 else dict.fromkeys(mix, batch_tokens)
            )
            for source, drawn_tokens in drawn.items():
                seen[source] += drawn_tokens / 2_412_331
            ease = end_loss + (start_loss - end_loss) * (1 + 60 * done) ** -0.75
            hard = {"speeches": 0.05, "chats": -0.4}
            rows.append(
                {
                    "step": len(rows) + 1,
                    "tokens": tokens,
                    "stage": name,
                    "loss": end_loss
                    + (start_loss - end_loss) * (1 + 60 * done) ** -0.75
                    + 0.08 * at
                    + dice.gauss(0, 0.07),
                    "learning_rate": peak * min(1, tokens / 1e5, 1 - math.sqrt(max(0, (done - 0.65) / 0.35)) + 1e-9),
                    "gradient_norm": dice.uniform(0.4, 1.3),
                    "chunk_length": chunk_length,
                    "mix": drawn,
                    "seconds": seconds,
                    "tokens_per_second": speed,
                    "share_of_peak": speed / 14_000,
                    "loss_by_source": {
                        source: ease + hard[source] + dice.gauss(0, 0.1) for source in drawn if drawn[source]
                    },
                    "epoch": {source: epochs for source, epochs in seen.items() if epochs},
                    "memory_bytes": 9e8 + 6e7 * at + dice.uniform(0, 4e6),
                }
            )
    return rows


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_whole_run(folder: Path) -> None:
    """A finished run of the tiny recipe, with made-up numbers."""
    loaded = load_recipe(RECIPE, ["seed=3", "model.hidden_size=256"])
    for name in ("manifests", "eval"):
        (folder / name).mkdir(parents=True)
    (folder / "recipe.json").write_text(
        json.dumps({"recipe": loaded.recipe.model_dump(), "rows": loaded.rows()}), encoding="utf-8"
    )
    write_lines(folder / "pretrain/metrics.jsonl", training_rows(STAGES, 8.4, 3.5, 4e-3))
    write_lines(folder / "tune/metrics.jsonl", training_rows(TUNE, 4.1, 2.9, 1e-3))
    size = {"documents": 230, "tokens": 2_412_331, "bytes": 10_100_000}
    speeches = {"documents": 240, "duplicates": 1, "bad": 0, "train": size, "heldout": {**size, "bytes": 410_000}}
    chats = {
        "documents": 7168,
        "duplicates": 31,
        "bad": 3150,
        "train": {**size, "bytes": 1_300_000},
        "bytes_per_token": 3.61,
    }
    training = {
        "parameters": 7_739_392,
        "steps": 342,
        "tokens": 2_000_000,
        "precision": "bf16",
        "threads": 2,
        "torch": "2.13.0",
        "cpu": "AMD EPYC 9R14",
        "instruction set": "AVX512",
        "peak_memory_bytes": 1.14e9,
        "seconds_training": 391.0,
    }
    packed = {"documents_whole": 201, "documents_cut": 17, "documents_left_over": 3, "sha256": {"starts": "0c" * 32}}
    lanes = [
        {"stage": name, "source": "speeches", "length": 256, "bins": 1250, "waste": 0.00417, **packed}
        for name in ("foundation", "quality")
    ]
    facts: dict[str, dict[str, Any]] = {
        "data": {"sources": {"speeches": {**speeches, "bytes_per_token": 4.19}, "chats": chats}},
        "pretrain": {
            **training,
            "packing": lanes,
            "epochs": {"speeches": 1.4375},
            "seen": {"speeches": [0.0, 0.5625, 0.4375]},
        },
        "tune": {**training, "tokens": 500_000, "seconds_training": 104.0},
    }
    of_recipe = json.loads(json.dumps(loaded.recipe.model_dump()))
    files = {"speeches": "ab" * 32, "chats": "ba" * 32}
    made = {step: {f"{step}/output": digest * 32} for step, digest in (("tokenizer", "cd"), ("data", "de"))}
    tables = {"tokenizer": "source data tokenizer", "data": "source data", "tune": "seed tune", "eval": "seed eval"}
    for step, seconds in (("tokenizer", 9.1), ("data", 14.2), ("pretrain", 431.0), ("tune", 118.0), ("eval", 41.5)):
        manifest = {
            "step": step,
            "inputs": {
                **{key: of_recipe[key] for key in tables.get(step, "seed model optimizer schedule stage").split()},
                **({"files": files} if step in ("tokenizer", "data") else {}),
                **{earlier: outputs for earlier, outputs in made.items() if step not in ("tokenizer", earlier)},
            },
            "outputs": made.get(step, {f"{step}/output": "ef" * 32}),
            "seconds": seconds,
            "started": "2026-11-23T17:30:00Z",
            "fox": "0.1.0",
            "facts": facts.get(step, {}),
        }
        (folder / f"manifests/{step}.json").write_text(json.dumps(manifest))
    results = {
        "bits_per_byte": {
            "foundation": {"speeches": 2.31, "chats": 3.62},
            "longer": {"speeches": 2.12, "chats": 2.71},
            "base": {"speeches": 2.07, "chats": 2.48},  # after the last stage, quality
            "tuned": {"speeches": 2.16, "chats": 2.13},
        },
        "assistant_bits_per_byte": {"base": {"chats": 2.52}, "tuned": {"chats": 2.09}},
        "kneser_ney_bits_per_byte": {"speeches": 2.44, "chats": 2.93},
        "replies": {"chats": 20, "ended": 19, "words": 400, "known_words": 390},
        "samples": [
            {
                "prompt": "Hello! How are you today?",
                "base": "The people of the United States have been called upon to consider the condition of the\n"
                "Treasury, and the Congress will no doubt be willing to make the appropriation which is needed.",
                "tuned": "I'm good, thanks! How are you?",
                "tuned_ended": True,
            },
            {"prompt": "What do you like to do?", "base": HOSTILE, "tuned": "I like to " * 30, "tuned_ended": False},
        ],
        "heldout": {"speeches": {"documents": 9, "tokens": 97_853, "bytes": 410_000}, "chats": {"bytes": 361_000}},
    }
    (folder / "eval/results.json").write_text(json.dumps(results))
