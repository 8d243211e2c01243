"""Compiled code is kept where it outlives the folder of temporary files, and is found there by the next run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fox.errors import UserError
from fox.model import Transformer
from fox.train.compilation import compile_blocks

COMPILE = """
import torch, warnings
from fox.model import ModelConfig, Transformer
from fox.recipe.schema import Optimizer
from fox.train.compilation import compile_blocks
from fox.train.optimizer import make_optimizer
warnings.simplefilter("ignore")
config = ModelConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=8, rope_theta=1e4, rms_norm_eps=1e-5,
    initializer_range=0.02, tie_word_embeddings=True)
model = Transformer(config)
model.initialise(torch.Generator().manual_seed(0))
make_optimizer(model, Optimizer(peak_learning_rate=1e-3))  # imports torch's compiler, as a run does before it compiles
compile_blocks(model)
from torch._dynamo.utils import counters
model(torch.zeros(1, 8, dtype=torch.int64)).sum().backward()
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


@pytest.mark.slow
def test_the_next_run_finds_the_code(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def hits() -> int:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=True
        )
        return sum(map(int, done.stdout.split()))

    assert hits() == 0
    assert any((tmp_path / "fox" / "torchinductor").rglob("*.so"))
    assert hits() > 0


def test_without_a_compiler_that_is_said(tiny_model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"train\.compile=false"):
        compile_blocks(tiny_model)
    assert torch._dynamo.config.recompile_limit != 64
