"""What many tests share: a tiny tokenizer and a tiny model, one thread, no network, the same random examples each time.

`pytest TEST --rewrite-golden` writes what TEST compares with tests/golden/ anew; look at the difference before you keep it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
hypothesis.settings.register_profile("fox", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("fox")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-golden", action="store_true", help="write the golden files of these tests anew")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order, so that the same test gives the same bits; and two workers share two cores."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """`golden(name, made)` gives what tests/golden/NAME.json holds, after writing `made` there where that is asked for."""

    def read(name: str, made: Any) -> Any:
        path = GOLDEN / f"{name}.json"
        test = request.node.nodeid.partition("[")[0]
        if request.config.getoption("--rewrite-golden"):
            content = {"rewritten by": f"python -m pytest {test} --rewrite-golden", "golden": made}
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))["golden"]

    return read


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A real tokenizer of 400 entries, learnt from a few sentences in a few scripts. Do not change it."""
    from fox.tokenizer.train import train_tokenizer

    more = "Whoever reads these sentences learns nothing that is worth knowing, but letters stand beside each other here as they do in books, which is enough to merge them (mostly)"
    texts = [
        f"The fox no. {n} ran over the lazy dog, and said: «naïve café», 日本語 🦊 {n * 37}. {more}\n"
        for n in range(300)
    ]
    return train_tokenizer(iter(texts), vocab_size=400, max_length=256)


@pytest.fixture
def make_config() -> Callable[..., Any]:
    """A tiny shape, with whatever is to be other."""
    from fox.model import ModelConfig

    def make(**other: Any) -> ModelConfig:
        shape = {
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "rope_theta": 10_000.0,
            "rms_norm_eps": 1e-2,  # large, so that a test notices where it is left out
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
        }
        return ModelConfig(**{**shape, **other})

    return make


@pytest.fixture
def make_model(make_config: Callable[..., Any]) -> Callable[..., Any]:
    """A tiny model whose weights all matter: matrices large enough for attention to choose, norms other than one."""
    import torch

    from fox.model import Transformer

    def make(seed: int = 0, **other: Any) -> Transformer:
        model = Transformer(make_config(**other))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                mean, deviation = (0.0, 0.25) if parameter.ndim > 1 else (1.0, 0.3)
                parameter.normal_(mean, deviation, generator=generator)
        return model.eval()

    return make


@pytest.fixture
def tiny_model(make_model: Callable[..., Any]) -> Any:
    return make_model()
