"""What a GPU can do at best, from its vendor's data sheet."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from fox.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    `memory_gb` is the data sheet's figure read as 1e9 bytes, the cautious way. `peak_tflops` is for bfloat16 products
    summed in float32, dense: data sheets print twice that, "with sparsity".
    """

    name: str
    memory_gb: float
    peak_tflops: float
    source: str


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("b200", 180, 2250, "NVIDIA DGX B200 datasheet (8 GPUs: 1,440 GB; bf16 half of fp8), dense"),
        Gpu("h200-141gb", 141, 989, "NVIDIA H200 datasheet, SXM, dense"),
        Gpu("h100-80gb", 80, 989, "NVIDIA H100 datasheet, SXM, dense"),
        Gpu("h100-pcie-80gb", 80, 756, "NVIDIA H100 datasheet, PCIe, dense"),
        Gpu("mi300x", 192, 1307, "AMD Instinct MI300X data sheet, dense"),
        Gpu("a100-80gb", 80, 312, "NVIDIA A100 datasheet, dense"),
        Gpu("a100-40gb", 40, 312, "NVIDIA A100 datasheet, dense"),
        Gpu("l40s", 48, 362, "NVIDIA L40S datasheet, dense"),
        Gpu("l4", 24, 121, "NVIDIA L4 datasheet, dense"),
        Gpu("rtx-5090", 32, 209, "NVIDIA RTX Blackwell GPU architecture whitepaper, float32 sums, dense"),
        Gpu("rtx-4090", 24, 165, "NVIDIA Ada GPU architecture whitepaper, float32 sums, dense"),
        Gpu("rtx-3090", 24, 71, "NVIDIA Ampere GA102 architecture whitepaper, float32 sums, dense"),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in capitals or not. Raises UserError that lists the known ones."""
    known = name.strip().lower().replace("_", "-").replace(" ", "-")
    if known in GPUS:
        return GPUS[known]
    close = difflib.get_close_matches(known, GPUS, n=1)
    guess = f"Did you mean {close[0]}? " if close else ""
    raise UserError(
        "--gpu",
        name,
        problem="is not a GPU that Fox has figures for",
        mend=f"{guess}Known: {', '.join(GPUS)}. For any other, measure a short run and give --tokens-per-second.",
    )
