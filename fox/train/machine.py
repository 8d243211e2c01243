"""The machine that a run is trained on: what decides its losses to the last bit, and what it can do."""

from __future__ import annotations

import math
import os
import platform
import resource
import sys
import time
from functools import lru_cache
from pathlib import Path

import torch

import fox
from fox.errors import UserError
from fox.memory import free_memory_bytes


def device() -> torch.device:
    """Where models are trained: this process's GPU where there is one (not run on one here), else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))  # torchrun numbers a machine's processes
    return torch.device("cpu")


def resolve_precision(wanted: str) -> str:
    """`auto` as bf16 where the processor multiplies in it, else float32. Raises UserError where bf16 is asked for in vain."""
    on_cuda = device().type == "cuda"
    able = torch.cuda.is_bf16_supported() if on_cuda else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if wanted == "bf16" and not able:
        raise UserError(
            "train.precision",
            wanted,
            problem="is not possible: this processor has no bf16 instructions",
            mend="-o train.precision=float32",
        )
    return ("bf16" if able else "float32") if wanted == "auto" else wanted


def multiplies_in_bf16(precision: str) -> bool:
    """Whether a resolved train.precision has matrix products in bf16: weights in bf16 are multiplied so only where it is built in."""
    return precision == "bf16" or (precision == "bf16-weights" and resolve_precision("auto") == "bf16")


def product_type(precision: str) -> torch.dtype:
    """What a resolved train.precision multiplies in."""
    return torch.bfloat16 if multiplies_in_bf16(precision) else torch.float32


def losses_depend_on() -> dict[str, object]:
    """What must stay the same for the same losses, bit for bit, besides recipe and data: each decides how numbers are rounded."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if able.get(name)]
    return {
        "fox": fox.__version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device().type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "instruction set": " ".join([torch.backends.cpu.get_cpu_capability(), *bf16]),
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@lru_cache(maxsize=4)
def matrix_peak_flops(where: torch.device, in_bf16: bool) -> float:
    """Operations a second of torch's product of two square matrices: the best of a few, in about a second, once a process."""
    size, times = (8192, 5) if where.type == "cuda" else (2048, 3)
    a = torch.ones(size, size, dtype=torch.bfloat16 if in_bf16 else torch.float32, device=where)
    best = math.inf
    for _ in range(1 + times):  # the first finds its kernel
        began = time.perf_counter()
        product = a @ a
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        best = min(best, time.perf_counter() - began)
        del product
    return 2 * size**3 / best


def free_bytes_of_rank() -> int | None:
    """The memory that this process may take for its steps: of its GPU, or its share of what is free for all that torchrun started on
    this machine. None where the system does not tell."""
    where = device()
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    free = free_memory_bytes()
    return None if free is None else free // ranks_here()


def ranks_here() -> int:
    """How many processes of this run are on this machine, as torchrun says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
