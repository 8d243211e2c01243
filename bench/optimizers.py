"""AdamW and Muon on the same data in the same order: what each learns from so many tokens, and what that takes.

    python bench/optimizers.py [--quick] [--tokens 700e3] [--rates 2e-3,4e-3,8e-3] [--json FILE] [--out FOLDER] [-o KEY=VALUE]

Trains bench/time_to_quality/plain.toml (8 M parameters without the embedding) on ../shared/data/text, or -o source.NAME.path=…, with each
optimiser at each rate, in turns; nothing else differs. A rate means much the same to both, as Muon's updates are scaled to AdamW's size
(arXiv 2502.16982). Runs are kept in --out and go on where they were stopped. With --quick, 40,000 tokens at one rate, to see that it works.
Exit code 0 where Muon's best is below AdamW's best in bits per byte, 1 where it is not, 3 where the text is not there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from results import ROOT, record
from rich.console import Console
from rich.table import Table
from time_to_quality import RECIPES, Trained, outcome, sized

OPTIMIZERS = ("adamw", "muon")
_QUICK_TOKENS = 40e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_TOKENS:,.0f} tokens at one rate")
    parser.add_argument("--tokens", type=float, default=700e3, help="of each training")
    parser.add_argument("--rates", default="2e-3,4e-3,8e-3", help="peak learning rates")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--out", type=Path, help="keep the runs here, and go on with those that are there")
    parser.add_argument("-o", dest="override", action="append", default=[], help="KEY=VALUE for all of them")
    arguments = parser.parse_args()
    if not (ROOT.parent / "shared" / "data" / "text").is_dir() and not arguments.override:
        print("../shared/data/text is not there: name text of your own with -o source.NAME.path=…")
        return 3
    rates = arguments.rates.split(",")[: 1 if arguments.quick else None]
    tokens = _QUICK_TOKENS if arguments.quick else arguments.tokens
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).resolve()
        found = {
            (name, rate): _train(name, rate, tokens, out, arguments.override) for rate in rates for name in OPTIMIZERS
        }
    table = Table("optimiser", *(f"bits per byte at {rate}" for rate in rates), "minutes")
    for name in OPTIMIZERS:
        runs = [found[name, rate] for rate in rates]
        table.add_row(name, *(f"{run.bits_per_byte:.4f}" for run in runs), f"{min(run.minutes for run in runs):.2f}")
    Console(width=100).print(table)
    figures = {
        "tokens": f"{next(iter(found.values())).tokens:,}",
        **{
            f"{name} at {', '.join(rates)}": ", ".join(f"{found[name, rate].bits_per_byte:.4f}" for rate in rates)
            for name in OPTIMIZERS
        },
        "minutes of the quickest": ", ".join(
            f"{name} {min(found[name, rate].minutes for rate in rates):.2f}" for name in OPTIMIZERS
        ),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("optimizers.py", figures)
    best = {name: min(found[name, rate].bits_per_byte for rate in rates) for name in OPTIMIZERS}
    ratio = best["adamw"] / best["muon"]
    print(f"optimizers: ratio {ratio:.3f} (goal 1.00)")
    return 0 if ratio > 1 or arguments.quick else 1


def _train(name: str, rate: str, tokens: float, out: Path, override: list[str]) -> Trained:
    """Train with one optimiser at one rate."""
    recipe = RECIPES / "plain.toml"
    page = tomllib.loads(recipe.read_text(encoding="utf-8"))
    data, run = out / "data", out / f"{name}-{rate}-{tokens:g}"
    for step in ("tokenizer", "data"):
        _fox(step, recipe, data, override)
    if not run.exists():
        shutil.copytree(data, run, copy_function=os.link)  # Fox writes files anew, never into what is there
    words = [f"optimizer.name={name}", f"optimizer.peak_learning_rate={rate}", *sized(page, tokens), *override]
    _fox("pretrain", recipe, run, words)
    return outcome(run, page)


def _fox(step: str, recipe: Path, run: Path, words: list[str]) -> None:
    options = [part for word in words for part in ("-o", word)]
    subprocess.run([sys.executable, "-m", "fox", step, str(recipe), "--out", str(run), *options], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
