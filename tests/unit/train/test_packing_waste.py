"""How much room packing leaves in the chunks of a real recipe, with real documents' lengths."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from fox.formats.token_shards import Shard, ShardWriter
from fox.recipe import load_recipe
from fox.train.stages import pack

ROOT = Path(__file__).parents[3]
DATA = ROOT.parent / "shared" / "data"


def lengths_of(files: list[Path]) -> list[int]:
    """Tokens of each document at four bytes each, which is what small-cpu.toml's vocabulary takes."""
    found = []
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                text = row.get("text") or "".join(message["content"] for message in row["messages"])
                found.append(2 + len(text.encode()) // 4)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_under_a_percent_is_wasted_of_the_texts_and_chats_of_small_cpu(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "small-cpu.toml", []).recipe
    shards = {}
    for name, source in recipe.source.items():
        lengths = lengths_of(sorted((ROOT / source.path).glob(source.files)))
        writer = ShardWriter(tmp_path / f"{name}.ds", 100, False)
        for length in lengths:
            writer.write(np.zeros(length, dtype=np.int64), None)
        writer.close()
        shards[name] = Shard(tmp_path / f"{name}.ds", 100)
    _, index = pack(recipe, recipe.stage, shards, tmp_path / "pretrain")
    assert len(index.facts) == 10
    for lane in index.facts:
        assert lane["waste"] < 0.01, lane
    _, tuned = pack(recipe, {"tune": recipe.tune}, shards, tmp_path / "tune")
    assert {lane["source"] for lane in tuned.facts} == {"dialogues", "instructions"}
    for lane in tuned.facts:
        assert lane["waste"] < 0.02, lane
