"""Compiles the C++ in the folders beside this file once, and loads it.

There is no torch in it: it takes addresses and strides, so that it compiles in seconds and serves any torch. Its OpenMP is the
one that torch has loaded, whose threads it shares; that is GNU's, and so is the compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

import torch

from fox.cache import cache_folder

_COMPILER = "g++"
_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno")
_WRITABLE_BY_OTHERS = 0o022
_AVX512_BF16 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma")


@lru_cache(maxsize=1)
def avx512_bf16() -> ctypes.CDLL | None:
    """The kernels for AVX-512 with bf16 products. None where the processor, the system or the compiler is another.

    Not where there is AMX either: there torch's products are four times as fast as these instructions.
    """
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return None
    if not able.get("avx512_bf16") or able.get("amx_bf16"):
        return None
    return _load(Path(__file__).with_name("avx512_bf16"), _AVX512_BF16)


def _load(folder: Path, instructions: tuple[str, ...]) -> ctypes.CDLL | None:
    """The library of a folder's sources, kept from before or compiled now. None without a compiler; or, with a warning, where it fails."""
    compiler = shutil.which(_COMPILER)
    if compiler is None:
        return None
    words = [compiler, *_FLAGS, *instructions]
    sources = sorted(folder.glob("*.cpp"))
    place = cache_folder() / "native"
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True).stdout
        read = [path.read_bytes() for path in (*sources, *sorted(folder.glob("*.h")))]
        made_of = hashlib.sha256(b"\0".join([*read, version, *map(str.encode, words)])).hexdigest()
        kept = place / f"{folder.name}-{made_of[:24]}.so"
        _keep_to_ourselves(place)
        return _loaded(kept) or _compile([*words, *map(str, sources)], kept)
    except OSError as error:
        why = str(error)
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode("utf-8", "replace").strip()[-500:]
    warnings.warn(
        f"{folder.name} could not be compiled by {compiler} and kept in {place}, so torch's own operations do its work, "
        f"slower: {why}",
        stacklevel=3,
    )
    return None


def _keep_to_ourselves(place: Path) -> None:
    """Make a folder that nobody else can put code into. Raises OSError where it, or the one that it is in, is somebody else's."""
    for folder in (place.parent, place):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        about = folder.stat()
        if about.st_uid != os.geteuid():
            raise OSError(f"{folder} belongs to another user, who could put other code there")
        if about.st_mode & _WRITABLE_BY_OTHERS:
            folder.chmod(0o700)


def _loaded(kept: Path) -> ctypes.CDLL | None:
    """What was compiled before. None where there is none yet, where a power cut has left half of one, or others may have written it."""
    try:
        about = kept.stat()
        if about.st_uid != os.geteuid() or about.st_mode & _WRITABLE_BY_OTHERS:
            return None
        return ctypes.CDLL(str(kept))
    except OSError:
        return None


def _compile(words: list[str], kept: Path) -> ctypes.CDLL:
    """Raises OSError or CalledProcessError where that fails; nothing half-made is kept."""
    # Two processes may compile at once: the last one's stays.
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        made = Path(folder) / kept.name
        subprocess.run([*words, "-o", str(made)], capture_output=True, check=True)
        made.chmod(0o700)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(kept)
    return ctypes.CDLL(str(kept))
