"""What docs/data-at-scale.md says of costs is what bench/data_cost.py makes of the measured rates."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/data-at-scale.md"


def told_by(*words: str) -> str:
    command = [sys.executable, "bench/data_cost.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONPATH": "."}).stdout


def test_the_table_is_of_the_measured_rates() -> None:
    command, told = re.findall(r"<!-- made by: (.+?) -->\n(.+?)\n<!-- end -->", PAGE.read_text("utf-8"), re.DOTALL)[0]
    assert command == "python bench/data_cost.py"
    assert told == told_by().rstrip(), f"{PAGE.name} is not of today: put in what  {command}  prints"


def test_the_rates_that_it_quotes_are_those() -> None:
    measured = json.loads((ROOT / "bench/data_throughput.json").read_bytes())
    pages, size, took = measured["pages"], measured["html_bytes"], measured["processor_s"]
    text = " ".join(PAGE.read_text("utf-8").split())
    assert f"{pages:,} pages" in text
    assert f"{pages / took:.0f} pages, or {size / took / 1e6:.1f} MB of HTML, a second of a core" in text
    row = next(
        row
        for row in reversed((ROOT / "bench/RESULTS.md").read_text("utf-8").splitlines())
        if "| data_throughput.py |" in row
    )
    (ratio,) = re.findall(r"times datatrove's speed ([\d.]+)", row)
    assert f"{ratio} times as many as plain datatrove" in text
    rates = {copies: float(rate) for copies, rate in re.findall(r"(\d+)x ([\d.]+)(?=,|;)", row)}
    assert rates["16"] >= rates["4"], "the page says that the time for a page did not grow"
    peaks = {
        copies: [int(peak) for peak in re.findall(r" (\d+)", told)]
        for copies, told in re.findall(r"(\d+)x (leads [a-z\d ]+)", row)
    }
    assert all(more <= 1.1 * less for more, less in zip(peaks["16"], peaks["4"], strict=True))
    assert f"{max(peaks['16'])} MB at most" in text


def test_other_prices_and_sizes_are_reckoned() -> None:
    told = told_by("--tokens", "3e11", "--dollars-per-core-hour", "1").splitlines()
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:4]] for row in told}
    assert rows["snapshots"] == ["1", "2"]
    hours = [range_of(cell) for cell in rows["core-hours: pages into documents"]]
    dollars = [range_of(cell) for cell in rows["dollars, at 1 a core-hour"]]
    assert dollars == [
        pytest.approx(of, rel=0.06) for of in hours
    ]  # two figures each; and duplicates are small beside them
    assert hours[1] == pytest.approx([2 * each for each in hours[0]], rel=0.06)


def range_of(cell: str) -> list[float]:
    return [float(each.replace(",", "")) for each in cell.split(" to ")]
