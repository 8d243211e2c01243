"""GGUF's blocks back to weights, each type as its layout says (the block structures of ggml-common.h).

A block holds integers q, and scales as float16: a weight is scale x q, or scale x q + minimum. A K-type's block of 256 has
sub-blocks with integer scales of their own, which its float16 scales multiply. The same bits come out as from ggml's own
reference: every product and sum is rounded by itself, never fused.

R rows, C columns, Y bytes (of a row or a block), N blocks, B weights of a block, S sub-blocks, W weights of a sub-block
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fox.formats.gguf.block_types import BlockType

# Weights at a time: all that a step of the work makes then stays in the cache, and there is enough of it for several cores.
_CHUNK_WEIGHTS = 1 << 18

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(raw_RY: Tensor, kind: BlockType) -> Tensor:
    """(rows, bytes of a row) uint8 as (rows, columns) float32.

    Any bytes are weights of some kind: broken scales give NaN or infinity. ValueError where rows are not whole blocks.
    """
    rows, row_bytes = raw_RY.shape
    weight_RC = torch.empty(rows, kind.row_columns(row_bytes))
    weight_NB = weight_RC.view(-1, kind.block_weights)
    block_NY = raw_RY.reshape(-1, kind.block_bytes)
    chunk_blocks = _CHUNK_WEIGHTS // kind.block_weights
    for start in range(0, len(block_NY), chunk_blocks):
        # A copy, since a file's tensor may start at an address that is no multiple of 2 or 4.
        chunk_NY = block_NY[start : start + chunk_blocks].clone(memory_format=torch.contiguous_format)
        target_NB = weight_NB[start : start + chunk_blocks]
        if kind.name in _FLOATS:
            target_NB.copy_(chunk_NY.view(_FLOATS[kind.name]))
        else:
            _DECODERS[kind.name](chunk_NY, target_NB)
    return weight_RC


def _q8_0(block_NY: Tensor, weight_NB: Tensor) -> None:
    weight_NB.copy_(block_NY[:, 2:].view(torch.int8)).mul_(_float16(block_NY, 0))


def _q4_0(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, 2:], weight_NB.unflatten(1, (2, 16)))
    weight_NB.sub_(8).mul_(_float16(block_NY, 0))


def _q4_1(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, 4:], weight_NB.unflatten(1, (2, 16)))
    weight_NB.mul_(_float16(block_NY, 0)).add_(_float16(block_NY, 2))


def _q5_0(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, 6:], weight_NB.unflatten(1, (2, 16)))
    weight_NB.add_(_fifth_bits(block_NY[:, 2:6])).sub_(16).mul_(_float16(block_NY, 0))


def _q5_1(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, 8:], weight_NB.unflatten(1, (2, 16)))
    weight_NB.add_(_fifth_bits(block_NY[:, 4:8])).mul_(_float16(block_NY, 0)).add_(_float16(block_NY, 2))


# ggml's kvalues_iq4nl: sixteen levels that lie denser near zero, as weights do.
_IQ4_NL_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _iq4_nl(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, 2:], weight_NB.unflatten(1, (2, 16)))
    levels = torch.tensor(_IQ4_NL_LEVELS, dtype=torch.float32)
    weight_NB.copy_(levels[weight_NB.int()]).mul_(_float16(block_NY, 0))


def _q4_k(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, 16:].unflatten(1, (4, 32)), weight_NB.unflatten(1, (4, 2, 32)))
    _scale_sub_blocks(block_NY, weight_NB)


def _q5_k(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, 48:].unflatten(1, (4, 32)), weight_NB.unflatten(1, (4, 2, 32)))
    high_NW, weight_NSW = block_NY[:, 16:48], weight_NB.unflatten(1, (8, 32))
    for place in range(8):  # bit s of byte w is the fifth bit of sub-block s's weight w
        weight_NSW[:, place] += ((high_NW >> place) & 1) << 4
    _scale_sub_blocks(block_NY, weight_NB)


def _q6_k(block_NY: Tensor, weight_NB: Tensor) -> None:
    _nibbles(block_NY[:, :128].unflatten(1, (2, 64)), weight_NB.unflatten(1, (2, 2, 64)))
    high_N2W, weight_N24W = block_NY[:, 128:192].unflatten(1, (2, 32)), weight_NB.unflatten(1, (2, 4, 32))
    for place in range(4):  # half a block at a time, bits 2s and 2s + 1 of byte w top the weight w of its run s of 32
        weight_N24W[:, :, place] += ((high_N2W >> 2 * place) & 3) << 4
    scale_NS = block_NY[:, 192:208].view(torch.int8) * _float16(block_NY, 208)
    weight_NB.sub_(32).unflatten(1, (16, 16)).mul_(scale_NS[:, :, None])


def _scale_sub_blocks(block_NY: Tensor, weight_NB: Tensor) -> None:
    """Q4_K's and Q5_K's integers to weights: two float16, and 8 scales and 8 minimums of 6 bits in 12 bytes.

    The first four of both have a byte each; the others have their low four bits in the last four bytes (a scale's below a
    minimum's) and their high two bits on top of the bytes of the first four.
    """
    packed_N12 = block_NY[:, 4:16]
    first_N8, last_N4 = packed_N12[:, :8], packed_N12[:, 8:]
    top_N8 = first_N8 >> 6 << 4
    scale_NS = torch.cat([first_N8[:, :4] & 63, (last_N4 & 15) | top_N8[:, :4]], 1) * _float16(block_NY, 0)
    minimum_NS = torch.cat([first_N8[:, 4:] & 63, (last_N4 >> 4) | top_N8[:, 4:]], 1) * _float16(block_NY, 2)
    weight_NB.unflatten(1, (8, 32)).mul_(scale_NS[:, :, None]).sub_(minimum_NS[:, :, None])


def _float16(block_NY: Tensor, at: int) -> Tensor:
    """(N, 1) float32: what bytes `at` and `at` + 1 hold."""
    return block_NY[:, at : at + 2].clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _nibbles(packed: Tensor, weight: Tensor) -> None:
    """(..., bytes) into (..., 2, bytes): all low halves, then all high ones."""
    weight.select(-2, 0).copy_(packed & 15)
    weight.select(-2, 1).copy_(packed >> 4)


def _fifth_bits(high_N4: Tensor) -> Tensor:
    """(N, 32) uint8, 16 or 0: weight 8 i + j's is bit j of byte i."""
    return ((high_N4[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(1) << 4


_DECODERS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
}
