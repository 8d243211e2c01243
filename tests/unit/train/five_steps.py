"""Five steps of training in several ways, by this process alone or, where torchrun has started it, by its ranks together.

torchrun --standalone --nproc-per-node 2 -m tests.unit.train.five_steps FOLDER WAY...
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fox.formats.token_shards import Shard
from fox.model import ModelConfig, Transformer
from fox.progress import Meter
from fox.train import distributed, muon
from fox.train.stages import pretrain
from fox.train.team import ALONE, Team, join
from tests.unit.train.micro_training import VOCAB_SIZE, recipe_of, shard_of

_orthogonalised = muon.orthogonalised
# The rate is low and eps is high, for what AdamW makes of a gradient of about eps depends on the order of its sums.
_CALM = {"peak_learning_rate": 1e-3, "eps": 1e-5}
WAYS: dict[str, dict[str, Any]] = {
    "muon": {"optimizer": {**_CALM, "name": "muon"}},
    "muon-of-parts": {"optimizer": {**_CALM, "name": "muon"}},
    "normed-heads": {"optimizer": _CALM, "qk_norm": True, "tensor_ranks": 2},
    "normed-heads-unsummed": {"optimizer": _CALM, "qk_norm": True, "tensor_ranks": 2},
}


def train(folder: Path, way: str, team: Team) -> None:
    """Leave rows and weights of a training in `folder`/`way`."""
    how = WAYS[way]
    stage = {"tokens": 1280, "chunk_length": 16, "rows": 4, "batch_tokens": 256, "mix": {"a": 1.0}}
    recipe = recipe_of(
        source={"a": {"path": "a"}},
        optimizer=how["optimizer"],
        schedule={"warmup_tokens": 256, "decay_tokens": 512},
        stage={"only": stage},
        tune=None,
    )
    model = None
    if team.leads:
        config = ModelConfig.from_recipe(recipe.model, VOCAB_SIZE)
        model = Transformer(dataclasses.replace(config, qk_norm=how.get("qk_norm", False)))
        model.initialise(torch.Generator().manual_seed(1))
        (folder / way).mkdir(parents=True)
        shard_of(folder / way / "a.ds", [5 + 3 * n % 40 for n in range(60)])
    team.wait()
    shards = {"a": Shard(folder / way / "a.ds", VOCAB_SIZE)}
    pretrain(recipe, model, shards, folder / way, {}, Meter(way, None, "tokens"), lambda *_: None, team)
    if model is not None:
        save_file(model.state_dict(), folder / way / "weights.safetensors")


def _of_parts(update_MRC: Tensor, group: dict[str, Any], product_type: torch.dtype) -> Tensor:
    """What a rank that knew half of each matrix would make of it."""
    halves = [part.contiguous() for part in update_MRC.chunk(2, dim=1)]
    return torch.cat([_orthogonalised(half_MRC, group, product_type) for half_MRC in halves], dim=1)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _main(folder: Path, ways: list[str]) -> None:
    torch.set_num_threads(1)
    if "WORLD_SIZE" not in os.environ:
        for way in ways:
            train(folder, way, ALONE)
        return
    team = join()
    for way in ways:
        team.share_model(WAYS[way].get("tensor_ranks", 1))
        assert team.sum_of_all(team.rank + 0.5) == team.size**2 / 2, "of all ranks, though they share rows"
        with pytest.MonkeyPatch.context() as damage:
            if way == "normed-heads-unsummed":
                damage.setattr(distributed, "_sum_over_heads", lambda *_: None)
            if way == "muon-of-parts":
                damage.setattr(muon, "orthogonalised", _of_parts)
            train(folder, way, team)
    team.wait()
    team.leave()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2:])
