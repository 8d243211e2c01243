"""How fast text becomes token ids: Fox's table of words beside the tokenizers library's own `encode_batch`, with the same threads.

    python bench/encode.py [--quick] [--data FOLDER] [--json FILE]

FOLDER (../shared/data/text beside this repository where it is not given) has wikipedia-*.jsonl.gz and books-*.jsonl.gz. A vocabulary of 256,000
entries (or as many as the text gives) is learnt from the first, as Fox learns it; what is encoded is text that it has not seen:

books   the novels and diaries of books-*, each fourth chapter
code    the Python files of the interpreter that runs this, each fourth
others  manual pages in German, Russian, Japanese and Chinese, as bench/vocabulary.py brings them

Each kind is encoded in batches of 4 MB, as the shards are made, and in a process of its own, so that no kind finds the words of another. Cold: the process
has encoded nothing, and the time to ask the library for Unicode's classes counts. Warm: the same text once more, in the same process. The peers are
`encode_batch`, which most would call, and `encode_batch_fast`, which finds no places and is what Fox called before. All take turns; figures are medians
over the rounds. The ids must be the same, each of them, or nothing is told.

With a second tokenizer where there is one: SmolLM2's (bench/real_weights.py says how it comes).
Goal: twice `encode_batch`'s MB/s, cold and warm, for all text together, with each tokenizer; how often `encode_batch_fast`'s it is, is told beside.
Exit code 0 where it is met, 1 where it is missed, 3 where the text is missing or can't be had.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from real_weights import weights
from results import ROOT, record
from vocabulary import CACHE, PACKAGES, fetched, text_of

from fox.errors import UserError
from fox.tokenizer import Tokenizer
from fox.tokenizer.train import train_tokenizer

GOAL = 2.0
"""Times the MB/s of `encode_batch`."""

ENTRIES = 256_000
BATCH_CHARACTERS = 4_000_000
LANGUAGES = ("German", "Russian", "Japanese", "Chinese")

Encode = Callable[[list[str]], list[np.ndarray]]
Rates = dict[str, dict[str, float]]
"""Seconds by way and kind of text."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, and half of the text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "text")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not list(arguments.data.glob("books-*.jsonl.gz")):
        print(f"{arguments.data} has no text: name a folder with --data")
        return 3
    try:
        texts = read_texts(arguments.data, 8 if arguments.quick else 4)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"a package can't be had: {error}. This needs apt-get and dpkg-deb, as Debian has them")
        return 3
    with tempfile.TemporaryDirectory() as place:
        folders = {"fox": Path(place) / "fox"}
        trained = train(rows(arguments.data, "wikipedia"))
        trained.save(folders["fox"])
        print(f"fox: {trained.vocab_size:,} entries, learnt from Wikipedia")
        if weights().exists():
            from fox.model.stored import open_model

            folders["smollm2"] = Path(place) / "smollm2"
            open_model(weights()).tokenizer.save(folders["smollm2"])
        return tell(
            {
                name: measure(folder, texts, 1 if arguments.quick else arguments.rounds)
                for name, folder in folders.items()
            },
            texts,
            arguments,
        )


def rows(data: Path, name: str) -> list[str]:
    files = (gzip.decompress(path.read_bytes()) for path in sorted(data.glob(f"{name}-*.jsonl.gz")))
    return [json.loads(line)["text"] for file in files for line in file.splitlines()]


def train(texts: list[str]) -> Tokenizer:
    try:
        return train_tokenizer(iter(texts), ENTRIES, 8192)
    except UserError as error:  # the text gives fewer; the message says how many
        fewer = int(str(error.problems[0].mend).partition("vocab_size=")[2].partition(",")[0])
        return train_tokenizer(iter(texts), fewer, 8192)


def read_texts(data: Path, one_of: int) -> dict[str, list[str]]:
    books = rows(data, "books")[::one_of]
    library = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)[::one_of]
    code = [path.read_text("utf-8", errors="ignore") for path in paths]
    folders = [fetched(name, CACHE) for language in LANGUAGES for name in PACKAGES[language]]
    pages = [text for folder in folders for path in sorted(folder.rglob("*.gz")) if path.is_file() and not path.is_symlink() and (text := text_of(path))]  # fmt: skip
    return {"books": books, "code": code, "others": pages[::one_of]}


def batches(texts: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def measure(folder: Path, texts: dict[str, list[str]], rounds: int) -> dict[str, Rates]:
    """Median seconds by way, state and kind of text. Raises AssertionError where ids differ."""
    taken: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for kind, of_kind in texts.items():
            digests = set()
            for way in WAYS:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    seconds, digest = pool.apply(encode_twice, (folder, way, of_kind))
                taken.setdefault((way, kind), []).append(seconds)
                digests.add(digest)
            assert len(digests) == 1, f"the ids of {kind} differ"
    return {
        way: {state: {kind: statistics.median(of[state] for of in taken[way, kind]) for kind in texts} for state in ("cold", "warm")}
        for way in WAYS
    }  # fmt: skip


WAYS = ("fox", "encode_batch", "encode_batch_fast")


def encode_twice(folder: Path, way: str, texts: list[str]) -> tuple[dict[str, float], str]:
    """Seconds of the first time and of the second, and a hash of all ids. Runs in a fresh process."""
    encode = way_of(Tokenizer.load(folder), way)
    seconds = {"cold": 0.0, "warm": 0.0}
    digest = hashlib.sha256()
    for state in seconds:
        for batch in batches(texts):
            start = time.perf_counter()
            made = encode(batch)
            seconds[state] += time.perf_counter() - start
            for ids in made:
                digest.update(np.uint32(len(ids)).tobytes() + ids.tobytes())
    return seconds, digest.hexdigest()


def way_of(tokenizer: Tokenizer, way: str) -> Encode:
    """Each way up to what is written to a shard: an array."""
    if way == "fox":
        return tokenizer.encode_arrays
    encode = getattr(tokenizer.backend, way)
    return lambda texts: [np.array(of.ids, dtype=np.uint32) for of in encode(texts, add_special_tokens=False)]


def tell(results: dict[str, dict[str, Rates]], texts: dict[str, list[str]], arguments: argparse.Namespace) -> int:
    sizes = {kind: sum(len(text.encode()) for text in of_kind) / 1e6 for kind, of_kind in texts.items()}
    sizes["all"] = sum(sizes.values())
    lowest = float("inf")
    result = {}
    for name, by_way in results.items():
        print(f"\n{name}: MB/s{'':12}{''.join(f'{kind:>14}' for kind in sizes)}")
        rates = {
            (way, state): {**{kind: sizes[kind] / spent for kind, spent in of.items()}, "all": sizes["all"] / sum(of.values())}
            for way, by_state in by_way.items()
            for state, of in by_state.items()
        }  # fmt: skip
        for (way, state), of in rates.items():
            print(f"{way + ', ' + state:24}{''.join(f'{rate:14.1f}' for rate in of.values())}")
        for peer in WAYS[1:]:
            for state in ("cold", "warm"):
                ratios = {kind: rates["fox", state][kind] / rates[peer, state][kind] for kind in sizes}
                print(f"{'times ' + peer + ', ' + state:32}{''.join(f'{ratio:13.2f}x' for ratio in ratios.values())}")
                result[f"{name}, times {peer}, {state}"] = f"{ratios['all']:.2f}"
                if peer == "encode_batch":
                    lowest = min(lowest, ratios["all"])
        result[f"{name} MB/s, cold and warm"] = f"{rates['fox', 'cold']['all']:.1f} and {rates['fox', 'warm']['all']:.1f}"  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("encode.py", result)
    print(f"\nencode: ratio {lowest:.2f} (goal {GOAL:.2f})")
    return 0 if lowest >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
