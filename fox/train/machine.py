"""The machine that a run is trained on: what decides its losses to the last bit, and what it can do."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path

import torch

import fox
from fox.errors import UserError


def device() -> torch.device:
    """Where models are trained: the first GPU where there is one (not run on one here), else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def losses_depend_on() -> dict[str, object]:
    """What must stay the same for the same losses, besides recipe and data."""
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


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
