"""SmolLM2's file and llama.cpp's programs, where they are there; bench/real_weights.py says where and how they come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import real_weights
from fox.model.stored import StoredModel, open_model


@pytest.fixture(scope="session")
def weights() -> Path:
    """The real file, as it was when the figures here were measured."""
    path = real_weights.weights()
    if not path.exists():
        pytest.skip(real_weights.check(path) or "")
    assert real_weights.check(path) is None, real_weights.check(path)
    return path


@pytest.fixture(scope="session")
def stored(weights: Path) -> StoredModel:
    return open_model(weights)


@pytest.fixture(scope="session")
def llama_tokenize() -> Callable[[Path, bytes], list[int] | None]:
    """llama.cpp's ids of a text by a GGUF file: without what it puts in front, and special tokens' names read as text.

    None where it dies of the text: bytes that would be half a surrogate pair make it abort.
    """
    if real_weights.llama_cpp() is None:
        pytest.skip(f"llama.cpp is missing: {real_weights.HOW}")

    def ids(path: Path, text: bytes) -> list[int] | None:
        words = ["-m", path, "--stdin", "--ids", "--no-bos", "--no-escape", "--no-parse-special"]
        made = subprocess.run(
            real_weights.llama_command("llama-tokenize", *words),
            input=text, capture_output=True, env=real_weights.llama_environment(),
        )  # fmt: skip
        if made.returncode:
            assert b"invalid codepoint" in made.stderr, made.stderr.decode("utf-8", "replace")
            return None
        last = made.stdout.decode().strip().splitlines()[-1]
        assert last[0] + last[-1] == "[]", last
        return [int(token) for token in last[1:-1].split(",") if token.strip()]

    return ids


@pytest.fixture(scope="session")
def fox() -> Callable[..., str]:
    """Run the command `fox`, and give what it prints."""

    def run(*words: str | Path) -> str:
        made = subprocess.run([sys.executable, "-m", "fox", *map(str, words)], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        return made.stdout

    return run


@pytest.fixture(scope="session")
def folder(weights: Path, fox: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a Hugging Face directory, in float32, through `fox export` and its gate."""
    path = tmp_path_factory.mktemp("smollm2") / "hf"
    fox("export", weights, "--to", "hf", "--type", "f32", "--out", path)
    return path
