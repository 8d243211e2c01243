"""A stored model as a GGUF file, which llama.cpp, Ollama and LM Studio run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fox.export.rows import encoded_rows
from fox.export.types import GGUF_TYPES, block_type
from fox.formats.gguf.block_types import BLOCK_TYPES
from fox.formats.gguf.quantize import quantize
from fox.formats.gguf.writer import TensorToWrite, Value, write_gguf
from fox.model.gguf import ROPE_FACTORS, config_to_gguf, gguf_name, interleave, is_interleaved, rope_factors
from fox.model.stored import StoredModel
from fox.tokenizer.to_gguf import tokenizer_to_gguf

_QUANTIZATION_VERSION = 2  # of ggml's block layouts


def export_gguf(
    stored: StoredModel, path: Path, file_type: str, about: Mapping[str, str], written: Callable[[int], None]
) -> None:
    """Write `stored` as a GGUF file at `path`, which the caller makes whole. `about` is told in its metadata (general.…).

    `written` is called with the number of weights of each part. Raises UserError where llama.cpp has no such tokenizer.
    """
    metadata: dict[str, Value] = {
        **config_to_gguf(stored.config),
        **{f"general.{key}": value for key, value in about.items()},
        "general.file_type": GGUF_TYPES[file_type],
        "general.quantization_version": _QUANTIZATION_VERSION,
        **tokenizer_to_gguf(stored.tokenizer, stored.config.vocab_size),
    }
    tensors = []
    factor_R = rope_factors(stored.config)
    if factor_R is not None:
        f32 = BLOCK_TYPES["F32"]
        tensors.append(TensorToWrite(ROPE_FACTORS, tuple(factor_R.shape), f32, [quantize(factor_R[None], f32)]))
    for name in stored.names:
        shape = stored.weights.shapes[name]
        kind = block_type(name, shape, file_type, stored.config)
        rows = encoded_rows(stored, name, _chunks(stored, name), kind, written)
        tensors.append(TensorToWrite(gguf_name(name), shape, kind, rows))
    write_gguf(path, metadata, tensors)


def _chunks(stored: StoredModel, name: str) -> Iterable[Tensor]:
    if is_interleaved(stored.config, name):
        return [interleave(stored.tensor(name, torch.float32), stored.config.head_dim)]
    return stored.chunks(name)
