"""Does a training that `fox plan --budget` proposes take the time that it was given?

    python bench/plan_budget.py [--quick] [--budget 8m] [--json FILE]

Asks for a proposal on the text and curriculum of bench/time_to_quality/plain.toml (../shared/data/text), with no file of timings kept
from before, trains what it says, and holds the seconds that were spent training against those that were foretold, which are nine tenths
of the budget: the rest is for tokenizing, scoring and saving. --quick asks for 3 minutes.
Goal: within 20 %. Exit code 0 where it is met, 1 where it is missed, 3 where the text is not there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from results import ROOT, record
from time_to_quality import RECIPES

GOAL = 0.20
_QUICK_BUDGET = "3m"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"a budget of {_QUICK_BUDGET}")
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not (ROOT.parent / "shared" / "data" / "text").is_dir():
        print("../shared/data/text is not there")
        return 3
    budget = _QUICK_BUDGET if arguments.quick else arguments.budget
    with tempfile.TemporaryDirectory() as scratch:
        recipe, run = Path(scratch) / "proposed.toml", Path(scratch) / "run"
        told = _fox("plan", RECIPES / "plain.toml", "--budget", budget, "--write", recipe, "--json")
        proposal = json.loads(told[told.index("{") :])
        for step in ("tokenizer", "data", "pretrain"):
            _fox(step, recipe, "--out", run)
        rows = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
        model = tomllib.loads(recipe.read_text(encoding="utf-8"))["model"]
    off = rows[-1]["seconds"] / proposal["seconds"] - 1
    figures: dict[str, Any] = {
        "budget": budget,
        "model": f"{model['hidden_size']} x {model['num_hidden_layers']}, {proposal['parameters']:,} parameters",
        "tokens": f"{rows[-1]['tokens']:,}",
        "seconds foretold": round(proposal["seconds"]),
        "trained": round(rows[-1]["seconds"]),
        "off by": f"{off:+.0%}",
        "loss": f"{rows[-1]['loss']:.3f}",
    }
    for key, value in figures.items():
        print(f"{key}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("plan_budget.py", figures)
    print(f"plan_budget: ratio {1 + off:.2f} (goal within {GOAL:.0%} of 1)")
    return 0 if abs(off) <= GOAL else 1


def _fox(*words: object) -> str:
    """What `fox` writes; run in the repository, as paths in recipes are from there."""
    command = [sys.executable, "-m", "fox", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
