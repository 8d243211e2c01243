"""llama.cpp's programs, as the comparison needs them: predictions on a text, greedy continuations, and quantised files.

N places in a text that count, V vocabulary
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from real_weights import llama_command, llama_environment
from torch import Tensor

from fox.model.stored import StoredModel, open_model

AS_FOX = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]
"""Keys and values in f32, and attention step by step."""


def predictions(path: Path, text: Path, chunks: int, chunk_tokens: int, threads: str) -> Saved:
    """What the model at `path` predicts in so many chunks of a text."""
    saved, chunk = path.with_name("saved.kld"), str(chunk_tokens)
    words: list[str | Path] = ["-m", path, "-f", text, "-c", chunk, "-b", chunk, "--chunks", str(chunks)]
    words += ["--save-all-logits", saved, "-t", threads, *AS_FOX]
    subprocess.run(llama_command("llama-perplexity", *words), check=True, capture_output=True, env=llama_environment())
    return Saved(saved)


class Saved:
    """What llama-perplexity saves: tokens, and of each place the log of its probabilities, in 65,536 steps (see its
    log_softmax, which keeps 16 nats)."""

    def __init__(self, path: Path) -> None:
        head = path.open("rb").read(20)
        assert head[:8] == b"_logits_"
        context, self.vocabulary, chunks = np.frombuffer(head[8:], dtype=np.int32).tolist()
        self.rows_BT = np.fromfile(path, dtype=np.int32, count=chunks * context, offset=20).reshape(chunks, context)
        width = 4 + 2 * ((self.vocabulary + 1) // 2)
        places = np.memmap(path, dtype=np.uint16, mode="r", offset=20 + self.rows_BT.nbytes)
        self._places = places.reshape(chunks * (context - 1 - context // 2), width)

    def __len__(self) -> int:
        return len(self._places)

    def log_probabilities(self, start: int, stop: int) -> Tensor:
        """Of places `start` to `stop` (N, V)."""
        places = np.array(self._places[start:stop])
        scale_least = places[:, :4].copy().view(np.float32).astype(np.float64)
        codes_NV = places[:, 4 : 4 + self.vocabulary].astype(np.float64)
        return torch.from_numpy(codes_NV * scale_least[:, :1] + scale_least[:, 1:])


@contextmanager
def server(path: Path, threads: str) -> Iterator[Callable[[list[int], int], list[int]]]:
    """llama-server with a model; gives a function that continues a prompt greedily, with the token that ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", path, "--host", "127.0.0.1", "--port", str(port), "-c", "1024", "-np", "1", "-t", threads]
    command = llama_command("llama-server", *words, "--no-ui", "--cache-ram", "0", *AS_FOX)
    with (path.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=llama_environment())
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)

        def complete(prompt: list[int], tokens: int) -> list[int]:
            asked = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "samplers": ["top_k"], "top_k": 1}
            asked |= {"cache_prompt": False, "return_tokens": True, "n_probs": 1}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=1800) as reply:
                made = json.load(reply)
            assert made["tokens_evaluated"] == len(prompt), "it must read what Fox reads"
            return [place["id"] for place in made["completion_probabilities"]]  # `tokens` lacks the one that ends it

        yield complete
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        time.sleep(0.25)
        assert process.poll() is None, "llama-server has ended: does it read this file?"
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError:
            continue
    raise TimeoutError(url)


def quantised(source: Path, path: Path, file_type: str, threads: str) -> StoredModel:
    """What llama-quantize makes of a file."""
    path.unlink(missing_ok=True)
    command = llama_command("llama-quantize", source, path, file_type.upper(), threads)
    subprocess.run(command, check=True, capture_output=True, env=llama_environment())
    return open_model(path)
