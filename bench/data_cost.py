"""What a corpus of so many tokens takes, from the rates that were measured: the table of docs/data-at-scale.md.

    python bench/data_cost.py [--tokens 3e12] [--dollars-per-core-hour 0.04]

Rates are of bench/data_throughput.json, as bench/data_throughput.py keeps it, and of the last row of bench/duplicates.py in RESULTS.md. All else is an
assumption, named below with its source. It is an extrapolation from 2 cores to thousands: what a cluster loses in waiting for its disk, its network and its slowest
task is not in it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
MEASURED = HERE / "data_throughput.json"

SNAPSHOT_PAGES = 2.5e9
"""Of one snapshot of Common Crawl, in the middle of those of the last years (2 to 3e9)."""
SNAPSHOT_HTML_BYTES = 400e12
"""Before compression: FineWeb's authors speak of 200 to 400 TiB."""
SNAPSHOT_ARCHIVE_BYTES = 85e12
"""As they are stored: 75 TB and more (arXiv 2404.09770)."""
SNAPSHOT_TOKENS = 15e12 / 96
"""That are kept of it: FineWeb has 15e12 of 96 snapshots (arXiv 2406.17557), by rules that are nearly those of Fox. English alone."""
KEPT_BY_DUPLICATES = 20 / 36
"""FineWeb: 36e12 tokens pass the language and Gopher's rules, and 20e12 of them are told once in their snapshot."""
TOKEN_BYTES = 4.5
"""Of English text, with a vocabulary of 50,000 entries; a larger one needs fewer tokens for the same text."""
DOCUMENT_BYTES = 3000.0
"""Of text, on average."""


class Cost(NamedTuple):
    """Of one snapshot."""

    read_core_h: tuple[float, float]
    """Pages into clean documents: by the number of pages, and by their bytes."""
    duplicates_core_h: float
    documents: float
    """That are looked at for duplicates."""
    first_bytes: float
    """The documents of the first round, on disk."""
    signature_bytes: float
    shingle_bytes: float
    corpus_bytes: float
    plan_bytes: float
    """Memory of the one machine that plans the comparisons."""

    @property
    def core_h(self) -> tuple[float, float]:
        low, high = sorted(each + self.duplicates_core_h for each in self.read_core_h)
        return low, high


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=3e12)
    parser.add_argument("--dollars-per-core-hour", type=float, default=0.04)
    arguments = parser.parse_args()
    measured = json.loads(MEASURED.read_bytes())
    results = (HERE / "RESULTS.md").read_text(encoding="utf-8")
    cost = cost_of(measured, duplicates_mb_s(results))
    print(table(cost, arguments.tokens, arguments.dollars_per_core_hour))
    return 0


def duplicates_mb_s(results: str) -> float:
    """Text that one core looks through for duplicates, in the largest corpus that was measured last."""
    return float(re.findall(r"\| duplicates\.py \|.*all, 4x fox ([\d.]+) in", results)[-1])


def cost_of(measured: dict[str, Any], duplicates_mb_s: float) -> Cost:
    from fox.data.duplicates.candidates import SHINGLE
    from fox.data.duplicates.groups import PAIR
    from fox.data.duplicates.minhash import BANDS
    from fox.data.duplicates.signatures import BAND, EXACT

    blocks = measured["block_s"]
    share = sum(took for name, took in blocks.items() if name.startswith("read: ")) / sum(blocks.values())
    read_s = measured["processor_s"] * share
    before_bytes = SNAPSHOT_TOKENS / KEPT_BY_DUPLICATES * TOKEN_BYTES
    documents = before_bytes / DOCUMENT_BYTES
    packed = measured["disk_bytes"] / measured["kept_bytes"]
    gone = 1 - KEPT_BY_DUPLICATES
    return Cost(
        (
            read_s / measured["pages"] * SNAPSHOT_PAGES / 3600,
            read_s / measured["html_bytes"] * SNAPSHOT_HTML_BYTES / 3600,
        ),
        before_bytes / (duplicates_mb_s * 1e6) / 3600,
        documents,
        before_bytes * packed,
        documents * (EXACT.itemsize + BANDS * BAND.itemsize),
        2
        * gone
        * before_bytes
        / 6
        * SHINGLE.itemsize,  # who goes and who stays for it; a word is six bytes with its space
        before_bytes * KEPT_BY_DUPLICATES * packed,
        2 * gone * documents * PAIR.itemsize * 6,  # as fox/data/duplicates/candidates.py reckons
    )


def table(cost: Cost, tokens: float, dollars: float) -> str:
    """As Markdown: one snapshot, and as many as it takes."""
    snapshots = math.ceil(tokens / SNAPSHOT_TOKENS)
    rows = [
        ("snapshots", "1", f"{snapshots}"),
        ("tokens kept", _count(SNAPSHOT_TOKENS), _count(snapshots * SNAPSHOT_TOKENS)),
        ("pages read", _count(SNAPSHOT_PAGES), _count(snapshots * SNAPSHOT_PAGES)),
        ("archives, read once", _size(SNAPSHOT_ARCHIVE_BYTES), _size(snapshots * SNAPSHOT_ARCHIVE_BYTES)),
        ("core-hours: pages into documents", *(_range(cost.read_core_h, times) for times in (1, snapshots))),
        ("core-hours: duplicates", *(_number(times * cost.duplicates_core_h) for times in (1, snapshots))),
        (
            f"dollars, at {dollars:g} a core-hour",
            *(_range(cost.core_h, times * dollars) for times in (1, snapshots)),
        ),
        ("days on 1,000 cores", *(_range(cost.core_h, times / 24_000) for times in (1, snapshots))),
        ("documents looked at for duplicates", _count(cost.documents), "each snapshot by itself"),
        ("disk while it is made: documents", _size(cost.first_bytes), "gone when the snapshot is done"),
        ("… signatures", _size(cost.signature_bytes), "the same"),
        ("… shingles of candidates", _size(cost.shingle_bytes), "the same"),
        ("memory of the machine that plans", _size(cost.plan_bytes), "the same"),
        ("disk: the corpus", _size(cost.corpus_bytes), _size(snapshots * cost.corpus_bytes)),
    ]
    head = ["| | one snapshot | " + _count(tokens) + " tokens |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def _range(values: tuple[float, float], times: float) -> str:
    low, high = (times * value for value in sorted(values))
    return f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Two figures: no more is known."""
    if value < 10:
        return f"{value:.1f}"
    digits = 1 - math.floor(math.log10(value))
    return f"{round(value, digits):,.0f}"


def _count(value: float) -> str:
    power = math.floor(math.log10(value) + 1e-9)
    return f"{value / 10**power:.1f}".removesuffix(".0") + f"e{power}"


def _size(value: float) -> str:
    for power, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB")):
        if value >= power:
            return f"{_number(value / power)} {unit}"
    return f"{value / 1e6:.0f} MB"


if __name__ == "__main__":
    sys.exit(main())
