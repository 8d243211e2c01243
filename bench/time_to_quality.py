"""How soon does the best recipe reach what the plain one reaches?

    python bench/time_to_quality.py [--quick] [--minutes 60] [--share 0.47] [--json FILE] [--out FOLDER] [--outside LOG]

Both recipes (bench/time_to_quality/{plain,best}.toml) train a model of the same size, about 8 M parameters without the embedding, on the
same text (../shared/data/text, or -o source.NAME.path), with the same tokenizer, kernels and machine. The plain one (constant chunks, AdamW,
cosine) gets `--minutes`; its held-out bits per byte at the end are the mark. The best one gets `--share` of the time that it took, with
its schedule made for it, and must reach the mark. A pilot of each measures its tokens a second, from which its tokens follow (a few percent
beside the truth: hence less than half), and leaves its compiled code, so that neither run compiles. What counts is the seconds
that were then spent training. One seed, the plain one first: the machine is to be left alone meanwhile. Both recipes' rate and batch were
found in runs of two to four minutes (LOG.md). Runs are kept in --out and go on where they were stopped.

`--outside LOG` takes another trainer's log: JSON Lines with `seconds` and `bits_per_byte` on the same held-out text; when it reached the
mark is told beside ours. With --quick, 1.5 minutes, to see that it works: no goal is judged.
Exit code 0 where the best needs at most half of the plain one's time, 1 where it does not, 3 where the text is not there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import ROOT, record
from rich.console import Console
from rich.table import Table

GOAL = 2.0
RECIPES = Path(__file__).with_name("time_to_quality")
_PILOT_STEPS, _STEPS_OF_A_STAGE = 24, 6
_QUICK_MINUTES = 1.5


@dataclass(frozen=True)
class Trained:
    """One recipe's run."""

    tokens: int
    minutes: float
    bits_per_byte: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK_MINUTES} minutes in place of --minutes")
    parser.add_argument("--minutes", type=float, default=60, help="the plain recipe's time")
    parser.add_argument("--share", type=float, default=0.47, help="the best recipe's share of it")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--out", type=Path, help="keep the runs here, and go on with those that are there")
    parser.add_argument("--outside", type=Path, help="another trainer's log")
    parser.add_argument("-o", dest="override", action="append", default=[], help="KEY=VALUE for both recipes")
    arguments = parser.parse_args()
    if not (ROOT.parent / "shared" / "data" / "text").is_dir() and not arguments.override:
        print(
            "../shared/data/text is not there: name text of your own with -o source.wikipedia.path=… -o source.books.path=…"
        )
        return 3
    minutes = _QUICK_MINUTES if arguments.quick else arguments.minutes
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).resolve()
        plain = _train("plain", minutes, out, arguments.override)
        best = _train("best", plain.minutes * arguments.share, out, arguments.override)
    table = Table("recipe", "tokens", "minutes", "held-out bits per byte")
    for name, run in (("plain", plain), ("best", best)):
        table.add_row(name, f"{run.tokens:,}", f"{run.minutes:.1f}", f"{run.bits_per_byte:.4f}")
    reached = _reached(arguments.outside, plain.bits_per_byte) if arguments.outside else None
    if arguments.outside:
        table.add_row(
            str(arguments.outside), "", "never" if reached is None else f"{reached:.1f}", f"{plain.bits_per_byte:.4f}"
        )
    Console(width=100).print(table)
    ratio = plain.minutes / best.minutes
    met = best.bits_per_byte <= plain.bits_per_byte and ratio >= GOAL
    figures = {
        "plain": f"{plain.bits_per_byte:.4f} bits per byte in {plain.minutes:.1f} minutes",
        "best": f"{best.bits_per_byte:.4f} in {best.minutes:.1f}",
        "time of the plain over the best's": f"{ratio:.2f}",
        "the best reaches the mark": "yes" if best.bits_per_byte <= plain.bits_per_byte else "no",
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("time_to_quality.py", figures)
    said = (
        f"{ratio:.2f}" if best.bits_per_byte <= plain.bits_per_byte else f"below {ratio:.2f} (the mark was not reached)"
    )
    print(f"time_to_quality: ratio {said} (goal {GOAL:.2f})")
    return 0 if met or arguments.quick else 1


def _train(name: str, minutes: float, out: Path, override: list[str]) -> Trained:
    """Train one recipe for about so many minutes."""
    recipe = RECIPES / f"{name}.toml"
    page = tomllib.loads(recipe.read_text(encoding="utf-8"))
    run = out / f"{name}-{minutes:g}"
    pilot = out / f"{name}-pilot"
    _fox("pretrain", recipe, pilot, [*override, *sized(page, _pilot_tokens(page))])
    tokens = sum(_rates(pilot)[stage] * share * minutes * 60 for stage, share in _shares_of_time(page, _rates(pilot)))
    _fox("pretrain", recipe, run, [*override, *sized(page, tokens)])
    return outcome(run, page)


def outcome(run: Path, page: dict[str, Any]) -> Trained:
    """What a finished run of the recipe `page` reached: held-out bits per byte, by the weights of its last stage."""
    rows = [json.loads(line) for line in (run / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    last = list(page["stage"])[-1]
    scores = json.loads((run / "pretrain" / "heldout" / f"{last}.json").read_text(encoding="utf-8"))["bits_per_byte"]
    weights = page["stage"][last]["mix"]
    bits = sum(weights[source] * scores[source] for source in weights) / sum(weights.values())
    return Trained(rows[-1]["tokens"], rows[-1]["seconds"] / 60, bits)


def _pilot_tokens(page: dict[str, Any]) -> float:
    """As many as give every stage some steps beyond the one that compiles."""
    total = sum(table["tokens"] for table in page["stage"].values())
    of_stages = [
        _STEPS_OF_A_STAGE * table["batch_tokens"] * total / table["tokens"] for table in page["stage"].values()
    ]
    return max(_PILOT_STEPS * 8192, *of_stages)


def _rates(pilot: Path) -> dict[str, float]:
    """Tokens a second in each stage: the median of its later half, as the first steps compile and warm the machine up."""
    rates: dict[str, list[float]] = {}
    for line in (pilot / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rates.setdefault(row["stage"], []).append(row["tokens_per_second"])
    return {stage: statistics.median(values[len(values) // 2 :]) for stage, values in rates.items()}


def _shares_of_time(page: dict[str, Any], rates: dict[str, float]) -> list[tuple[str, float]]:
    """Of the time, each stage's share: its tokens over its rate."""
    seconds = {stage: table["tokens"] / rates[stage] for stage, table in page["stage"].items()}
    return [(stage, of_stage / sum(seconds.values())) for stage, of_stage in seconds.items()]


def sized(page: dict[str, Any], tokens: float) -> list[str]:
    """The recipe's proportions over so many tokens."""
    factor = tokens / sum(table["tokens"] for table in page["stage"].values())
    words = [f"stage.{name}.tokens={max(1, round(table['tokens'] * factor))}" for name, table in page["stage"].items()]
    for key in ("warmup_tokens", "decay_tokens"):
        if page["schedule"].get(key):
            words.append(f"schedule.{key}={round(page['schedule'][key] * factor)}")
    return words


def _fox(command: str, recipe: Path, run: Path, words: list[str]) -> None:
    """Do a step and those before it, which take up what is done."""
    options = [part for word in words for part in ("-o", word)]
    for step in ("tokenizer", "data", command):
        subprocess.run(
            [sys.executable, "-m", "fox", step, str(recipe), "--out", str(run), *options], cwd=ROOT, check=True
        )


def _reached(log: Path, mark: float) -> float | None:
    """Minutes at which an outside trainer's log is first at the mark."""
    for line in log.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["bits_per_byte"] <= mark:
            return float(row["seconds"]) / 60
    return None


if __name__ == "__main__":
    sys.exit(main())
