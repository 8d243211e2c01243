"""A stored model as a Hugging Face directory, which transformers and vLLM run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fox.export.rows import encoded_rows
from fox.formats.gguf.block_types import BLOCK_TYPES
from fox.formats.huggingface import write_configs
from fox.formats.safetensors import TensorToWrite, stream_safetensors
from fox.model.directory import ends_of
from fox.model.stored import StoredModel

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""The types of a directory's weights, and torch's name of each."""


def export_huggingface(
    stored: StoredModel, folder: Path, file_type: str, shard_bytes: int, written: Callable[[int], None]
) -> None:
    """Write `stored` into `folder`, which the caller makes whole, in files of at most `shard_bytes` (or of one tensor).

    `written` is called with the number of weights of each part.
    """
    tokenizer, kind = stored.tokenizer, BLOCK_TYPES[file_type.upper()]
    config = stored.config.to_hugging_face(tokenizer.bos_id, ends_of(tokenizer), tokenizer.pad_id)
    write_configs(folder, config, DTYPES[file_type], stored.generation or None)
    tokenizer.save(folder)

    tensors = [
        TensorToWrite(name, stored.weights.shapes[name], encoded_rows(stored, name, stored.chunks(name), kind, written))
        for name in stored.names
    ]
    stream_safetensors(folder, tensors, kind, shard_bytes)
