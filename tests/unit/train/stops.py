"""Where a training is stopped: a few places in every run of the tests, the rest in the slow ones."""

from __future__ import annotations

from typing import Any

import pytest


def slowly(stops: list[int]) -> Any:
    """These stops as a parameter of a slow test."""
    return pytest.param(stops, marks=pytest.mark.slow)
