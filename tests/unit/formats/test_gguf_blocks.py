"""GGUF's blocks against the gguf library: its bytes from our weights, its weights from any bytes, and how far off they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fox.formats.gguf import k_quants
from fox.formats.gguf.block_types import BLOCK_TYPES, UNSUPPORTED, BlockType, type_of_number
from fox.formats.gguf.dequantize import dequantize
from fox.formats.gguf.quantize import quantize

gguf = pytest.importorskip("gguf")

EXACT = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_TYPES = ["Q4_K", "Q6_K"]
BLOCKS = [*EXACT[3:], *K_TYPES]

# The root mean square of the error over that of the weights, for weights of a normal distribution: measured (F16 to Q8_0
# 0.00021, 0.0017, 0.0859, 0.0782, 0.0427, 0.0378, 0.0054; Q4_K 0.0707, Q6_K 0.0175), and a little room.
ERROR_BOUNDS = {
    "F32": 0.0,
    "F16": 0.00025,
    "BF16": 0.0019,
    "Q4_0": 0.088,
    "Q4_1": 0.080,
    "Q5_0": 0.044,
    "Q5_1": 0.039,
    "Q8_0": 0.0056,
    "Q4_K": 0.072,
    "Q6_K": 0.0180,
}


def normal(rows: int, columns: int = 512, size: float = 0.02, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size


def relative_error(weights: Tensor, kind: BlockType) -> float:
    error = dequantize(quantize(weights, kind), kind) - weights
    return float((error.square().mean() / weights.square().mean()).sqrt())


def by_library(weights: Tensor, kind: BlockType) -> np.ndarray:
    return gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType[kind.name]).view(np.uint8)


def read_by_library(raw: np.ndarray, kind: BlockType) -> np.ndarray:
    with np.errstate(all="ignore"):  # random scales are NaN and infinite too
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])


def random_bytes(rows: int, columns: int, kind: BlockType, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, kind.row_bytes(columns)), dtype=np.uint8)


# The types


def test_numbers_and_sizes_are_the_library_s() -> None:
    for kind in BLOCK_TYPES.values():
        number = gguf.GGMLQuantizationType[kind.name]
        assert (kind.number, kind.block_weights, kind.block_bytes) == (number, *gguf.GGML_QUANT_SIZES[number])
        assert type_of_number(kind.number) is kind
    for number, name in UNSUPPORTED.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert type_of_number(number) is None
    assert type_of_number(4) is None


def test_rows_are_whole_blocks() -> None:
    kind = BLOCK_TYPES["Q4_K"]
    assert kind.row_bytes(512) == 288
    assert kind.row_columns(288) == 512
    with pytest.raises(ValueError, match="257 columns are not a multiple of Q4_K's block of 256 weights"):
        quantize(torch.zeros(2, 257), kind)
    with pytest.raises(ValueError, match="145 bytes are not a multiple of Q4_K's block of 144 bytes"):
        dequantize(torch.zeros(2, 145, dtype=torch.uint8), kind)


# Reading


@pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("rows", [0, 1, 300])  # none, one that is smaller than a chunk, and more than a chunk
def test_any_bytes_are_read_as_the_library_reads_them(kind: BlockType, rows: int) -> None:
    raw = random_bytes(rows, 1024, kind)
    got = dequantize(torch.from_numpy(raw), kind)
    assert got.dtype == torch.float32
    assert got.shape == (rows, 1024)
    if rows:  # the library's own division into groups fails on none
        np.testing.assert_array_equal(got.numpy(), read_by_library(raw, kind))


@pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=lambda kind: kind.name)
def test_the_extremes_of_every_field_at_an_odd_address(kind: BlockType) -> None:
    """Bytes of 0, 1, 127, 128 and 255, as a view into a file's bytes that starts at the second."""
    few = np.array([0, 1, 127, 128, 255], dtype=np.uint8)
    raw = few[random_bytes(200, 256, kind, seed=2) % 5]
    shifted = torch.from_numpy(np.concatenate([few[:1], raw.ravel()]))[1:].view(raw.shape)
    np.testing.assert_array_equal(dequantize(shifted, kind).numpy(), read_by_library(raw, kind))


@pytest.mark.parametrize("kind", BLOCK_TYPES.values(), ids=lambda kind: kind.name)
def test_reading_s_parity_notices_every_flipped_bit_of_a_block(kind: BlockType) -> None:
    """Every bit of a block is a part of some weight, so none that is misread can hide."""
    # Scales of ordinary size: the bytes of a float16 below 0x38 (a half), and integers that are never 0.
    raw = (random_bytes(1, kind.block_weights, kind, seed=1) & 0x37) | 0x11
    flips = np.packbits(np.eye(8 * kind.block_bytes, dtype=np.uint8), axis=1)
    damaged = dequantize(torch.from_numpy(raw ^ flips), kind).numpy()
    assert not (damaged == read_by_library(raw, kind)).all(1).any()
    assert (dequantize(torch.from_numpy(raw), kind).numpy() == read_by_library(raw, kind)).all()


# Writing


def hard_weights() -> Tensor:
    """Rows of 512: of every size, on ties of rounding, with the largest twice, constant, zero, one-sided, or one outlier."""
    noise = normal(8, seed=3)
    ties = torch.randint(-16, 16, (8, 512), generator=torch.Generator().manual_seed(4)) / 2
    ties[:, ::32], ties[:, 1::32] = 127.0, -127.0  # Q8_0's scale is then 1, and each x.5 a tie
    steps = torch.randint(0, 63, (4, 512), generator=torch.Generator().manual_seed(5)) / 2
    steps[:, ::32], steps[:, 1::32] = 0.0, 31.0  # Q5_1's scale is 1
    outlier = torch.zeros(2, 512)
    outlier[0, 7::32], outlier[1, 31::32] = 3.0, -3.0
    sizes = [noise * size for size in (1.0, 1e-30, 1e-8, 1e-4, 1e3, 5e5)]
    constants = torch.tensor([0.0, 1.0, -1.0, 1e-30, -1e-30, 6e4, -6e4])[:, None].expand(-1, 512)
    repeated = [noise.sign(), noise.bfloat16().float()]
    one_sided = [noise.abs(), -noise.abs()]
    return torch.cat([*sizes, *repeated, ties, steps, -steps, *one_sided, outlier, constants])


@pytest.mark.parametrize("name", EXACT)
def test_the_library_s_bytes_for_hard_weights(name: str) -> None:
    kind = BLOCK_TYPES[name]
    np.testing.assert_array_equal(quantize(hard_weights(), kind).numpy(), by_library(hard_weights(), kind))


@pytest.mark.parametrize("name", EXACT)
@given(
    st.lists(st.floats(-6e4, 6e4, width=32, allow_subnormal=False), min_size=1, max_size=64),
    st.sampled_from([1e-6, 1e-3, 1.0]),
)
def test_the_library_s_bytes_for_any_weights(name: str, values: list[float], size: float) -> None:
    kind = BLOCK_TYPES[name]
    weights = torch.tensor(values).mul_(size).repeat(64)[:64].view(2, 32)
    # Where 0 and -0 are a block's least, the library's minimum is either; ours is 0. And it divides by what is too small.
    weights[weights.abs() < 1e-30] = 0.0
    np.testing.assert_array_equal(quantize(weights, kind).numpy(), by_library(weights, kind))


@pytest.mark.parametrize("name", EXACT)
def test_writing_s_parity_notices_one_weight_that_moves_by_a_step(name: str) -> None:
    kind = BLOCK_TYPES[name]
    weights, damaged = normal(600), normal(600)  # more than a chunk
    np.testing.assert_array_equal(quantize(weights, kind).numpy(), by_library(weights, kind))
    damaged[599, 5] += 0.02
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(quantize(damaged, kind).numpy(), by_library(weights, kind))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_types_that_cannot_be_written_say_so(name: str) -> None:
    if name in (*EXACT, *K_TYPES):
        assert quantize(torch.zeros(0, 256), BLOCK_TYPES[name]).shape == (0, BLOCK_TYPES[name].row_bytes(256))
    else:
        with pytest.raises(ValueError, match=f"no way to quantise to {name}"):
            quantize(torch.zeros(1, 256), BLOCK_TYPES[name])


@pytest.mark.parametrize("name", [*EXACT, *K_TYPES])
def test_signed_and_tiny_zeros(name: str) -> None:
    """Of 0 and -0, and of what no float16 scale can tell from them, come weights of (almost) 0."""
    for weights in (torch.tensor([0.0, -0.0]).repeat(1, 128), torch.full((1, 256), -0.0), torch.full((1, 256), 1e-40)):
        back = dequantize(quantize(weights, BLOCK_TYPES[name]), BLOCK_TYPES[name])
        assert back.abs().max() <= weights.abs().max()


@pytest.mark.parametrize("name", [*EXACT, *K_TYPES])
def test_other_floats_and_views_are_quantised_as_what_they_hold(name: str) -> None:
    weights = normal(4).bfloat16()
    expected = quantize(weights.float(), BLOCK_TYPES[name])
    assert torch.equal(quantize(weights, BLOCK_TYPES[name]), expected)
    assert torch.equal(quantize(weights.T.contiguous().T, BLOCK_TYPES[name]), expected)


# What cannot be stored


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 599])
def test_nan_and_infinity_are_refused_in_blocks(name: str, value: float, row: int) -> None:
    weights = normal(600)
    weights[row, 77] = value
    with pytest.raises(ValueError, match=f"a weight is NaN or infinite, which {name} cannot hold"):
        quantize(weights, BLOCK_TYPES[name])


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_nan_and_infinity_pass_where_there_are_no_blocks(name: str) -> None:
    weights = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0, -0.0]])
    back = dequantize(quantize(weights, BLOCK_TYPES[name]), BLOCK_TYPES[name])
    np.testing.assert_array_equal(back.numpy(), weights.numpy())
    assert back[0, 4].signbit()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("F16", 65520.0, "a weight does not fit float16"),
        ("BF16", 3.4e38, "a weight does not fit bfloat16"),
        *((name, 3e38, "scale does not fit float16") for name in BLOCKS),
        *((name, -1e10, "scale does not fit float16") for name in BLOCKS),
        ("Q4_1", -70000.0, "scale does not fit float16"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, value: float, told: str) -> None:
    weights = normal(1)
    weights[0, 300] = value
    with pytest.raises(ValueError, match=told):
        quantize(weights, BLOCK_TYPES[name])


def test_the_greatest_that_fits() -> None:
    weights = torch.full((1, 256), 65504.0)
    for name in ("F16", *BLOCKS):
        back = dequantize(quantize(weights, BLOCK_TYPES[name]), BLOCK_TYPES[name])
        torch.testing.assert_close(back, weights, rtol=2e-3, atol=0)


# How far off


@pytest.mark.parametrize("name", ERROR_BOUNDS)
@pytest.mark.parametrize("size", [0.005, 0.02, 1.0])
def test_error_of_normal_weights_is_bounded(name: str, size: float) -> None:
    assert relative_error(normal(256, 1024, size), BLOCK_TYPES[name]) <= ERROR_BOUNDS[name]


def test_a_better_type_has_a_smaller_error() -> None:
    """Q4_K's 4.5 bits a weight are as many as Q4_0's and fewer than Q4_1's 5; Q6_K's 6.6 are more than Q5_1's 6."""
    error = {name: relative_error(normal(256, 1024), BLOCK_TYPES[name]) for name in BLOCKS}
    order = ["Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0"]
    assert sorted(error, key=error.__getitem__) == order
    assert error["Q4_K"] < 0.92 * error["Q4_1"]
    assert error["Q6_K"] < 0.5 * error["Q5_1"]


@pytest.mark.parametrize("name", K_TYPES)
def test_the_search_finds_better_than_its_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error with the tries taken away, one sort after the other, is larger each time: the bounds above notice it."""
    kind, weights = BLOCK_TYPES[name], normal(256, 1024)
    full = relative_error(weights, kind)
    neighbours = f"_{name}_NEIGHBOURS"
    monkeypatch.setattr(k_quants, neighbours, ())
    no_neighbours = relative_error(weights, kind)
    monkeypatch.setattr(k_quants, f"_{name}_REACHES", ())
    nothing = relative_error(weights, kind)
    assert full < no_neighbours < nothing
    assert nothing > ERROR_BOUNDS[name]


@pytest.mark.parametrize("name", K_TYPES)
def test_edge_blocks_of_the_k_types(name: str) -> None:
    """The error stays within a share of the block's largest weight, wherever the weights lie; zeros come back as zeros."""
    kind, weights = BLOCK_TYPES[name], hard_weights()
    weights = torch.cat([weights, normal(8) + 0.2, normal(8) - 0.2, normal(8) * normal(8, seed=1).exp()])
    back = dequantize(quantize(weights, kind), kind)
    largest = weights.view(-1, 256).abs().amax(1, keepdim=True)
    error = (back - weights).view(-1, 256).abs().amax(1, keepdim=True)
    # Of weights around 1e-6 the scale is 0 as float16 and the minimum perhaps not: no further off than they reach.
    share = {"Q4_K": 0.1, "Q6_K": 0.05}[name]
    assert (error <= torch.where(largest > 1e-2, share * largest, 2 * largest)).all()
    assert back[weights.abs().amax(1) == 0].abs().max() == 0


@pytest.mark.parametrize("name", K_TYPES)
def test_what_was_quantised_once_stays(name: str) -> None:
    """Quantising what a block gives back adds little, so a model may go to GGUF, back, and there again."""
    kind = BLOCK_TYPES[name]
    once = dequantize(quantize(normal(64), kind), kind)
    assert relative_error(once, kind) < 0.5 * ERROR_BOUNDS[name]
