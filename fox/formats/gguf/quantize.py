"""Weights to GGUF's blocks. The types without a K give the same bytes as ggml's reference; Q4_K and Q6_K are in k_quants.py.

A block keeps integers q and, as float16, a scale and for some types a minimum: weight = scale x q (+ minimum). The integers
are found with the scale as it was before it was rounded to float16, as ggml does it.

R rows, C columns, Y bytes (of a row or a block), N blocks, B weights of a block
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fox.formats.gguf.block_types import BlockType
from fox.formats.gguf.k_quants import inverse, search_q4_k, search_q6_k

# Weights at a time: all that a step of the work makes then stays in the cache, and there is enough of it for several cores.
_CHUNK_WEIGHTS = 1 << 18

# The greatest float32 below a half. Added to a number and cut off, it rounds halves away from zero, as C's roundf does;
# a half itself would round 0.49999997 up.
_ALMOST_HALF = 0.49999997

# Times this, eight bytes of 0 or 1 have their bits side by side in the top byte: byte i's is moved up by 56 - 7 i.
_GATHER_BITS = sum(1 << (56 - 7 * place) for place in range(8))


def quantize(weight_RC: Tensor, kind: BlockType) -> Tensor:
    """(rows, columns) weights as (rows, bytes of a row) uint8.

    ValueError where rows are not whole blocks, where a type of blocks meets NaN or infinity, and where a finite weight or
    scale does not fit the type that it is stored in. The types without blocks keep NaN and infinity as they are.
    """
    rows, columns = weight_RC.shape
    encode = _ENCODERS.get(kind.name)
    if encode is None:
        raise ValueError(f"no way to quantise to {kind.name} (only to {', '.join(_ENCODERS)})")
    block_RY = torch.empty(rows, kind.row_bytes(columns), dtype=torch.uint8)
    block_NY = block_RY.view(-1, kind.block_bytes)
    weight_NB = weight_RC.reshape(-1, kind.block_weights)
    chunk_blocks = _CHUNK_WEIGHTS // kind.block_weights
    for start in range(0, len(weight_NB), chunk_blocks):
        chunk_NB = weight_NB[start : start + chunk_blocks].float()
        try:
            encode(chunk_NB, block_NY[start : start + chunk_blocks])
        except OverflowError as error:
            if kind.block_weights > 1 and not chunk_NB.isfinite().all():
                raise ValueError(f"a weight is NaN or infinite, which {kind.name} cannot hold") from None
            raise ValueError(f"{error} (as {kind.name}; the largest weight is {chunk_NB.abs().amax():.3g})") from None
    return block_RY


def _f32(weight_NB: Tensor, block_NY: Tensor) -> None:
    block_NY.view(torch.float32).copy_(weight_NB)


def _f16(weight_NB: Tensor, block_NY: Tensor) -> None:
    _cast(weight_NB, block_NY.view(torch.float16), "float16")


def _bf16(weight_NB: Tensor, block_NY: Tensor) -> None:
    _cast(weight_NB, block_NY.view(torch.bfloat16), "bfloat16")


def _cast(weight_NB: Tensor, cast_NB: Tensor, name: str) -> None:
    cast_NB.copy_(weight_NB)
    least, greatest = cast_NB.aminmax()  # one pass, where isinf takes several; NaN shows in it, too
    if not (least - greatest).isfinite() and (cast_NB.isinf() & weight_NB.isfinite()).any():
        raise OverflowError(f"a weight does not fit {name}")


def _q8_0(weight_NB: Tensor, block_NY: Tensor) -> None:
    scale_N1 = weight_NB.abs().amax(1, keepdim=True).div_(127)
    _store_float16(scale_N1, block_NY[:, :2])
    q_NB = weight_NB * inverse(scale_N1)
    q_NB += torch.full((), _ALMOST_HALF).copysign(q_NB)
    block_NY[:, 2:].view(torch.int8).copy_(q_NB)


def _q4_0(weight_NB: Tensor, block_NY: Tensor) -> None:
    q_NB = _symmetric(weight_NB, block_NY, 8)
    block_NY[:, 2:] = _packed_nibbles(q_NB, 16)


def _q5_0(weight_NB: Tensor, block_NY: Tensor) -> None:
    q_NB = _symmetric(weight_NB, block_NY, 16)
    block_NY[:, 2:6] = _packed_fifth_bits(q_NB)
    block_NY[:, 6:] = _packed_nibbles(q_NB, 16)


def _q4_1(weight_NB: Tensor, block_NY: Tensor) -> None:
    q_NB = _asymmetric(weight_NB, block_NY, 15)
    block_NY[:, 4:] = _packed_nibbles(q_NB, 16)


def _q5_1(weight_NB: Tensor, block_NY: Tensor) -> None:
    q_NB = _asymmetric(weight_NB, block_NY, 31)
    block_NY[:, 4:8] = _packed_fifth_bits(q_NB)
    block_NY[:, 8:] = _packed_nibbles(q_NB, 16)


def _q4_k(weight_NB: Tensor, block_NY: Tensor) -> None:
    found = search_q4_k(weight_NB)
    _store_float16(found.scale_N1, block_NY[:, :2])
    _store_float16(found.minimum_N1, block_NY[:, 2:4])
    # Twelve bytes for sixteen integers of six bits: see `dequantize`.
    scale_N2F, minimum_N2F = found.sub_scale_NS.unflatten(1, (2, 4)), found.sub_minimum_NS.unflatten(1, (2, 4))
    block_NY[:, 4:8] = scale_N2F[:, 0] | (scale_N2F[:, 1] >> 4 << 6)
    block_NY[:, 8:12] = minimum_N2F[:, 0] | (minimum_N2F[:, 1] >> 4 << 6)
    block_NY[:, 12:16] = (scale_N2F[:, 1] & 15) | (minimum_N2F[:, 1] << 4)
    block_NY[:, 16:] = _packed_nibbles(found.q_NB, 32)


def _q6_k(weight_NB: Tensor, block_NY: Tensor) -> None:
    found = search_q6_k(weight_NB)
    _store_float16(found.scale_N1, block_NY[:, 208:])
    block_NY[:, :128] = _packed_nibbles(found.q_NB, 64)
    high_N24W = (found.q_NB >> 4).unflatten(1, (2, 4, 32))
    pairs_N22W = high_N24W[:, :, ::2] | (high_N24W[:, :, 1::2] << 2)
    block_NY[:, 128:192] = (pairs_N22W[:, :, 0] | (pairs_N22W[:, :, 1] << 4)).flatten(1)
    block_NY[:, 192:208] = found.sub_scale_NS.view(torch.uint8)


def _symmetric(weight_NB: Tensor, block_NY: Tensor, half: int) -> Tensor:
    """Integers 0 to 2 `half` - 1, uint8, for scale x (q - `half`): the block's largest weight, by size, has 0."""
    low_N1, high_N1 = weight_NB.amin(1, keepdim=True), weight_NB.amax(1, keepdim=True)
    largest_N1 = torch.where(-low_N1 > high_N1, low_N1, high_N1)
    # Of two that are as large, ggml takes the first, which decides the sign of the scale.
    tied = (-low_N1 == high_N1).squeeze(1).nonzero().squeeze(1)
    if len(tied):
        tied_NB = weight_NB[tied]
        largest_N1[tied] = tied_NB.gather(1, tied_NB.abs().argmax(1, keepdim=True))
    scale_N1 = largest_N1.div_(-half)
    _store_float16(scale_N1, block_NY[:, :2])
    return (weight_NB * inverse(scale_N1)).add_(half + 0.5).clamp_(0, 2 * half - 0.5).byte()


def _asymmetric(weight_NB: Tensor, block_NY: Tensor, top: int) -> Tensor:
    """Integers 0 to `top`, uint8, for scale x q + minimum: the block's least weight has 0, its greatest `top`."""
    low_N1 = weight_NB.amin(1, keepdim=True).add_(0)  # which makes 0 of -0
    scale_N1 = weight_NB.amax(1, keepdim=True).sub_(low_N1).div_(top)
    _store_float16(scale_N1, block_NY[:, :2])
    _store_float16(low_N1, block_NY[:, 2:4])
    return (weight_NB - low_N1).mul_(inverse(scale_N1)).add_(0.5).clamp_(0, top).byte()


def _store_float16(scale_N1: Tensor, two_N2: Tensor) -> None:
    half_N1 = scale_N1.half()
    if not half_N1.isfinite().all():
        raise OverflowError("a block's scale does not fit float16")
    two_N2.copy_(half_N1.view(torch.uint8))


def _packed_nibbles(q_NB: Tensor, half: int) -> Tensor:
    """(N, B) uint8 as (N, B / 2): the low four bits of `half` integers, and above them those of the next `half`."""
    q_NK2H = q_NB.unflatten(1, (-1, 2, half))
    return ((q_NK2H[:, :, 0] & 15) | (q_NK2H[:, :, 1] << 4)).flatten(1)


def _packed_fifth_bits(q_NB: Tensor) -> Tensor:
    """(N, 4) uint8: weight 8 i + j's is bit j of byte i."""
    ones_N4 = (q_NB >> 4).view(torch.int64)
    return (ones_N4 * _GATHER_BITS >> 56).byte()


_ENCODERS: dict[str, Callable[[Tensor, Tensor], None]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
