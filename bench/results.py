"""Append a measurement to RESULTS.md: what was measured, on what, at which commit."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path
from typing import Any

from fox.train.machine import processor

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """# Measurements

Written by the scripts beside this page, newest last; never by hand. Times are of shared machines: compare ratios, not seconds.

| date | commit | machine | script | result |
|---|---|---|---|---|
"""


def record(script: str, result: dict[str, Any]) -> None:
    """One row of RESULTS.md."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    machine = f"{processor()}, {os.cpu_count()} cores"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    told = "; ".join(f"{key} {value}" for key, value in result.items())
    page = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else _HEAD
    RESULTS.write_text(f"{page}| {day} | {commit or 'unknown'} | {machine} | {script} | {told} |\n", encoding="utf-8")
