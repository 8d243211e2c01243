"""The commands that the pages name are commands that there are, and the command reference is of today."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from fox.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = ROOT / "docs" / "command-reference.md"


def shown_commands(first_word: str) -> list[str]:
    """The lines of code blocks that begin with a word, without their comments; blocks marked as text are output."""
    blocks = [
        found for page in PAGES for found in re.findall(r"```(\w*)\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    whole = [block.replace("\\\n", " ") for kind, block in blocks if kind != "text"]
    lines = [line.split(" #")[0].strip() for block in whole for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith(f"{first_word} ")})


@pytest.mark.parametrize("line", shown_commands("fox"))
def test_a_fox_command_of_the_pages_is_one(line: str) -> None:
    name, *rest = shlex.split(line)[1:]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    command.make_context(name, rest)  # raises where an option or an argument is wrong


@pytest.mark.parametrize("line", shown_commands("make"))
def test_a_make_target_of_the_pages_is_one(line: str) -> None:
    target = line.split()[1]
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), line


def test_ci_runs_the_readmes_tests() -> None:
    assert "make test\n" in (ROOT / ".ci" / "run").read_text("utf-8")
    assert (ROOT / "README.md").read_text("utf-8").index("make demo") < 1500


def test_the_command_reference_is_the_commands() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "typer", "fox.cli", "utils", "docs", "--name", "fox"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert REFERENCE.read_text("utf-8") == made.stdout, "docs/command-reference.md is not of today: run  make docs"
