"""In which type each tensor of a GGUF file is kept.

The rules are llama.cpp's own (`llama-quantize`), so that a file is as large and as good as people expect of its type's name:
the head in more bits than the rest, and Q4_K_M's more bits for the values and down-projections of some layers.
"""

from __future__ import annotations

from fox.formats.gguf.block_types import BLOCK_TYPES, BlockType
from fox.model.config import ModelConfig

GGUF_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q4_k_m": 15, "bf16": 32,
}  # fmt: skip
"""The types of a whole file, and llama.cpp's number for each (general.file_type)."""

_INSTEAD = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""What takes the place of a type in 256s where rows are no multiple of that."""


def block_type(name: str, shape: tuple[int, ...], file_type: str, config: ModelConfig) -> BlockType:
    """The type of one tensor in a file of `file_type`. Vectors stay float32: they are small, and everything hangs on them."""
    if len(shape) == 1:
        return BLOCK_TYPES["F32"]
    wanted = BLOCK_TYPES[_wanted(name, file_type, config)]
    while shape[-1] % wanted.block_weights:
        wanted = BLOCK_TYPES[_INSTEAD.get(wanted.name, "F16")]
    return wanted


def _wanted(name: str, file_type: str, config: ModelConfig) -> str:
    plain = "Q4_K" if file_type == "q4_k_m" else file_type.upper()
    if plain in ("F32", "F16", "BF16", "Q8_0"):
        return plain
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    if name == head:
        return "Q6_K"
    if file_type == "q4_k_m" and name.endswith(("v_proj.weight", "down_proj.weight")):
        return "Q6_K" if _has_more_bits(int(name.split(".")[2]), config.num_hidden_layers) else plain
    return plain


def _has_more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
