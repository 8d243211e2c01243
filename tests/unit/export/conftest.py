from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken

from fox.model import Transformer
from fox.model.directory import save_model
from fox.model.stored import StoredModel, open_model
from fox.tokenizer import Tokenizer

WIDE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "head_dim": 64, "vocab_size": 416,
    "rms_norm_eps": 1e-5, "initializer_range": 0.06,
}  # fmt: skip


@pytest.fixture(scope="session")
def own_tokenizer(tiny_tokenizer: Tokenizer) -> Tokenizer:
    """The tiny tokenizer with a token that is found in text, one that llama.cpp ends replies at, and another end. Do not change it."""
    backend = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    backend.add_tokens(
        [AddedToken(name, special=False, normalized=False) for name in ("<tool_call>", "<|fim_pad|>", "<b>")]
    )
    made = Tokenizer(backend, copy.deepcopy(tiny_tokenizer.config))
    made.stop_ids.add(made.special_ids["<|user|>"])
    return made


@pytest.fixture
def wide_model(make_config: Callable[..., Any]) -> Callable[..., Transformer]:
    """A model with rows of 256, and weights of such a size that its likeliest token has a chance of about a tenth.

    `make_model`'s weights are larger by far than any training makes them, so that their rounding is, too.
    """

    def made(**other: Any) -> Transformer:
        model = Transformer(make_config(**{**WIDE, **other})).eval()
        generator = torch.Generator().manual_seed(0)
        model.initialise(generator)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.normal_(1.0, 0.1, generator=generator)
        return model

    return made


@pytest.fixture
def store(own_tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., StoredModel]:
    """A model as it lies on the disk, in tmp_path / "source"."""

    def made(
        model: Transformer, dtype: torch.dtype = torch.float32, tokenizer: Tokenizer = own_tokenizer
    ) -> StoredModel:
        save_model(tmp_path / "source", model, tokenizer, dtype)
        stored = open_model(tmp_path / "source")
        stored.tokenizer.stop_ids |= tokenizer.stop_ids
        return stored

    return made


@pytest.fixture
def wide(store: Callable[..., StoredModel], wide_model: Callable[..., Transformer]) -> StoredModel:
    return store(wide_model())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder in which nothing is but what an export leaves."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"
