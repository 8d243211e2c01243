"""How the report tells numbers: three figures at most, with the unit, and a dash where there is none."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "–"
_SPACE = "\N{NO-BREAK SPACE}"


def count(number: float | None) -> str:
    """7739392 -> `7.74 M`; up to 9999 every digit counts."""
    if number is None or not math.isfinite(number):
        return NONE
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size * 0.9995:
            return f"{_three_figures(number / (1e3 if letter == 'k' else size))}{_SPACE}{letter}"
    return f"{number:,.0f}"


def exact(number: float | None) -> str:
    return NONE if number is None or not math.isfinite(number) else f"{number:,.0f}"


def size(number: float | None) -> str:
    """Bytes, in powers of 1000."""
    if number is None or not math.isfinite(number):
        return NONE
    for power, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(number) >= power * 0.9995:
            return f"{_three_figures(number / power)}{_SPACE}{unit}"
    return f"{number:.0f}{_SPACE}B"


def duration(seconds: float | None) -> str:
    """372 -> `6 min 12 s`: the two leading units."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 10:
        return f"{seconds:.1f}{_SPACE}s"
    whole = round(seconds)
    for big, small, unit, small_unit in ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s")):
        if whole >= big:
            rest = whole % big // small
            return f"{whole // big}{_SPACE}{unit}" + (f"{_SPACE}{rest}{_SPACE}{small_unit}" if rest else "")
    return f"{whole}{_SPACE}s"


def decimal(number: float | None, places: int = 2) -> str:
    return NONE if number is None or not math.isfinite(number) else f"{number:.{places}f}"


def share(part: float | None, whole: float | None) -> str:
    """5 of 8 -> `62 %`; what is nearly all does not read as all."""
    if part is None or not whole:
        return NONE
    percent = 100 * part / whole
    return f"{percent:.{1 if 99 <= percent < 100 else 0}f}{_SPACE}%"


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _three_figures(number: float) -> str:
    return f"{number:.{0 if abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2}f}"
