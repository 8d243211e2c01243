"""A recipe of three stages and a tuning, and shards of made-up tokens: training without text, in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fox.formats.token_shards import Shard, ShardWriter
from fox.recipe import Recipe

VOCAB_SIZE = 60
BOS, EOS = 0, 1


def recipe_of(**other: Any) -> Recipe:
    """Two text sources and one of chats; chunks that grow; 20 steps in all. `other` replaces whole tables."""
    page: dict[str, Any] = {
        "name": "micro",
        "seed": 7,
        "source": {"a": {"path": "a"}, "b": {"path": "b"}, "c": {"path": "c", "kind": "chat"}},
        "tokenizer": {"vocab_size": 300},
        "model": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
        "train": {"precision": "float32", "compile": False, "checkpoint_every_steps": 3},
        "optimizer": {"peak_learning_rate": 1e-2},
        "schedule": {"warmup_tokens": 512, "decay_tokens": 1024},
        "stage": {
            "short": {"tokens": 1280, "chunk_length": 16, "rows": 8, "batch_tokens": 128, "mix": {"text": 1.0}},
            "mixed": {
                "tokens": 1536,
                "chunk_length": {"text": 32, "c": 16},
                "rows": 4,
                "batch_tokens": 256,
                "mix": {"text": 0.75, "c": 0.25},
            },
            "long": {"tokens": 1024, "chunk_length": 64, "rows": 2, "batch_tokens": 256, "mix": {"a": 1.0, "c": 1.0}},
        },
        "tune": {
            "tokens": 1024,
            "chunk_length": 64,
            "rows": 2,
            "batch_tokens": 256,
            "mix": {"chat": 1.0},
            "optimizer": {"peak_learning_rate": 1e-3},
            "schedule": {"warmup_tokens": 0, "decay_tokens": 512, "decay_shape": "linear"},
        },
    }
    return Recipe.model_validate({**page, **other})


def shard_of(path: Path, lengths: Sequence[int], with_loss_mask: bool = False, seed: int = 0) -> Shard:
    """Documents that begin with BOS and end with EOS; each token between follows from the last, but for some noise."""
    random = np.random.default_rng(seed)
    writer = ShardWriter(path, VOCAB_SIZE, with_loss_mask)
    for length in lengths:
        tokens = [BOS, int(random.integers(2, VOCAB_SIZE))]
        while len(tokens) < length - 1:
            noise = int(random.integers(0, 3))
            tokens.append(2 + (tokens[-1] * 3 + noise) % (VOCAB_SIZE - 2))
        tokens = [*tokens[: length - 1], EOS]
        writer.write(np.array(tokens), np.arange(length) >= length // 2 if with_loss_mask else None)
    writer.close()
    return Shard(path, VOCAB_SIZE)
