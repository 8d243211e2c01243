"""What a machine tells of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from fox.train.machine import _left_in_container


@pytest.mark.parametrize(
    ("limit", "left"), [("1000", 1000 - 900 + 700 + 50), ("max", None), ("800", 800 - 900 + 750), ("100", 0)]
)
def test_what_is_kept_of_files_is_free_in_a_container(limit: str, left: int | None, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 700\nslab_reclaimable 50\n")
    assert _left_in_container(tmp_path) == left


def test_without_a_container_nothing_is_said(tmp_path: Path) -> None:
    assert _left_in_container(tmp_path) is None
