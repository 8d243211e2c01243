"""The best documents of a source become a source of the last stage: by one process or many, stopped or not, the same to the last bit."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pyarrow.parquet import read_table

from fox.artifacts import sha256_of
from tests.journey.micro_run import HERE, fox, kill_when

CORPUS = Path("runs/micro/corpus")
QUALITY = """
[source.best]
path = "top:stories"

[data.executor]
workers = 2

[data.quality]
good = ["good/*.jsonl"]
share = 0.1
"""
FILES, STORIES, EVERY = 4, 500, 10
ONCE = "-o", "data.duplicates.near=true"


def write_world(folder: Path) -> None:
    """Stories in common words of which every tenth is in the words of the examples too, and chats."""
    draw = random.Random(2)
    common = [bytes(draw.choices(b"abcdefgh", k=draw.randint(3, 8))).decode() for _ in range(600)]
    wanted = [bytes(draw.choices(b"mnopqrst", k=draw.randint(3, 8))).decode() for _ in range(300)]

    def story(is_wanted: bool) -> str:
        words = draw.choices(common, k=60) + (draw.choices(wanted, k=30) if is_wanted else [])
        draw.shuffle(words)
        return " ".join(words)

    (folder / "text").mkdir()
    (folder / "good").mkdir()
    for number in range(FILES):
        rows = [{"text": story(at % EVERY == 3), "title": str(at % EVERY == 3)} for at in range(STORIES)]
        (folder / f"text/{number}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    good = [json.dumps({"text": story(True)}) for _ in range(200)]
    (folder / "good/examples.jsonl").write_text("\n".join(good))
    chats = [
        {"messages": [{"role": role, "content": story(False)[:60]} for role in ("user", "assistant")]}
        for _ in range(60)
    ]
    (folder / "chats.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    page = (HERE / "micro.toml").read_text().replace("[data]\n", '[data]\nunlicensed = "keep"\n')
    last, mix = page.split("[stage.last]")
    mix = mix.replace("{ text = 0.5, chat = 0.5 }", "{ best = 0.4, text = 0.3, chat = 0.3 }", 1)
    (folder / "micro.toml").write_text(f"{last}[stage.last]{mix}{QUALITY}")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path)
    return tmp_path


def made(folder: Path) -> dict[str, str]:
    files = sorted(path for path in (folder / CORPUS).rglob("*") if path.is_file())
    return {str(path.relative_to(folder / CORPUS)): sha256_of(path) for path in files}


def corpus(folder: Path, *words: str) -> dict[str, str]:
    fox(folder, "corpus", "micro.toml", *words)
    return made(folder)


def rows(folder: Path, source: str) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / CORPUS / source).glob("*")) for row in read_table(path).to_pylist()]


def test_the_planted_ones_are_moved(world: Path) -> None:
    whole = corpus(world)
    best, rest = rows(world, "best"), rows(world, "stories")
    assert len(best) == FILES * STORIES // EVERY and len(best) + len(rest) == FILES * STORIES
    assert sum(row["title"] == "True" for row in best) >= 0.9 * len(best)
    assert not {row["id"] for row in best} & {row["id"] for row in rest}
    assert min(row["quality"] for row in best) >= max(row["quality"] for row in rest)
