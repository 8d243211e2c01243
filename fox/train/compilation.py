"""torch.compile for training: one piece of code for all blocks, made once for each shape of a stage."""

from __future__ import annotations

import os
import shutil

import torch

from fox.cache import cache_folder
from fox.errors import UserError
from fox.model import Transformer

_PLACE = "TORCHINDUCTOR_CACHE_DIR"


def compile_blocks(model: Transformer) -> None:
    """Compile the blocks of `model` in place. They share one piece of code, so that it is made once for each shape of a stage.

    Raises UserError where there is no compiler for a processor's code.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not shutil.which("g++") and not shutil.which("clang++"):
        raise UserError(
            "train.compile",
            True,
            problem="needs a C++ compiler, and there is no g++ or clang++",
            mend="Install one, or -o train.compile=false.",
        )
    _keep_code()
    torch._dynamo.config.recompile_limit = 64  # a shape for each stage; the default of 8 falls back to eager in silence
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for block in model.layers:
        block.compile(dynamic=False)


def load_compiler() -> None:
    """Import what compiling takes: hundreds of megabytes, which are no tensor's."""
    _keep_code()
    import torch._inductor.compile_fx  # noqa: F401


def _keep_code() -> None:
    """Keep compiled code between runs and restarts of the machine: torch's own place for it is in the folder of temporary files.

    Torch writes that place into the environment as soon as its compiler is imported, which optimisers do.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # the compiler: only where it is wanted

    if os.environ.get(_PLACE) in (None, default_cache_dir()):
        os.environ[_PLACE] = str(cache_folder() / "torchinductor")
