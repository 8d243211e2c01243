"""How far the tensors of a random model are off once they are quantised, by Fox and by llama-quantize."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from llama_programs import quantised

from fox.export.gguf import export_gguf
from fox.model import ModelConfig, Transformer
from fox.model.directory import save_model
from fox.model.stored import StoredModel, open_model
from fox.tokenizer.train import train_tokenizer


def tensor_errors(folder: Path, types: Sequence[str]) -> dict[str, dict[str, float]]:
    """The relative root mean square error of a random model's tensors, by their type, made by Fox and by llama-quantize."""
    config = ModelConfig(
        vocab_size=400, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=256, rope_theta=10_000.0, rms_norm_eps=1e-5,
        initializer_range=0.02, tie_word_embeddings=True,
    )  # fmt: skip
    model = Transformer(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 1.0, 0.02, generator=generator)
    words = [f"The fox no. {n} ran over the lazy dog {n * 37}.\n" for n in range(300)]
    random.Random(1).shuffle(words)
    save_model(folder / "random", model, train_tokenizer(iter(words), vocab_size=280, max_length=256))
    stored = open_model(folder / "random")
    exact = folder / "random-f32.gguf"
    export_gguf(stored, exact, "f32", {}, lambda weights: None)
    made: dict[str, dict[str, float]] = {}
    for file_type in types:
        path = folder / "random-ours.gguf"
        path.unlink(missing_ok=True)
        export_gguf(stored, path, file_type, {}, lambda weights: None)
        ours, theirs = open_model(path), quantised(exact, folder / "random-theirs.gguf", file_type, "1")
        assert not other_types(ours, theirs), other_types(ours, theirs)
        for kind in sorted(set(ours.weights.stored_types.values()) - {"F32", *made}):
            names = [name for name in stored.names if ours.weights.stored_types[name] == kind]
            made[kind] = {"ours": _error(stored, ours, names), "theirs": _error(stored, theirs, names)}
    return made


def _error(source: StoredModel, made: StoredModel, names: list[str]) -> float:
    error, size = 0.0, 0.0
    for name in names:
        wanted = source.tensor(name, torch.float32).double()
        error += (made.tensor(name, torch.float32) - wanted).square().sum().item()
        size += wanted.square().sum().item()
    return math.sqrt(error / size)


def other_types(ours: StoredModel, theirs: StoredModel) -> dict[str, tuple[str, str]]:
    """The tensors that are kept in another type, with both types."""
    one, other = ours.weights.stored_types, theirs.weights.stored_types
    return {name: (one[name], other[name]) for name in ours.names if one[name] != other[name]}
