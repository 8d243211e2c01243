"""How fast text becomes token ids: Fox's table of words beside the tokenizers library's own `encode_batch`, with the same threads.

    python bench/encode.py [--quick] [--data FOLDER] [--json FILE]

FOLDER (../shared/data/text beside this repository where it is not given) has wikipedia-*.jsonl.gz and books-*.jsonl.gz. A vocabulary of 256,000
entries (or as many as the text gives) is learnt from the first, as Fox learns it; what is encoded is text that it has not seen:

books   the novels and diaries of books-*
code    the Python files of the interpreter that runs this
other   the books in the letters of other scripts: each letter moved to Greek, Cyrillic,
        Devanagari and CJK, a paragraph a script. It is no language; its words are as long, as frequent and as new as those of one, in other bytes.

Each is encoded in batches of 4 MB, as the shards are made. Cold: a process of its own that has encoded nothing, the time to ask the library for
Unicode's classes included. Warm: the same text once more. The peers are `encode_batch`, which most would call, and `encode_batch_fast`, which finds no
places and is what Fox called before. All take turns; figures are medians over the rounds. The ids must be the same, each of them, or nothing is told.

With a second tokenizer where there is one: SmolLM2's (bench/real_weights.py says how it comes).
Goal: twice `encode_batch`'s MB/s, cold and warm, for all text together, with each tokenizer. Exit code 0 where it is met, 1 where it is missed, 3 where
the text is missing.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from real_weights import weights
from results import ROOT, record

from fox.errors import UserError
from fox.tokenizer import Tokenizer
from fox.tokenizer.train import train_tokenizer

GOAL = 2.0
"""Times the MB/s of `encode_batch`."""

ENTRIES = 256_000
BATCH_CHARACTERS = 4_000_000
SCRIPTS = (0x0391, 0x0430, 0x0905, 0x4E00)
"""The first letter of each script: α, а, अ, 一."""

Encode = Callable[[list[str]], list[np.ndarray]]
Rates = dict[str, dict[str, float]]
"""Seconds by way and kind of text."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, and a quarter of the text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "text")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not list(arguments.data.glob("books-*.jsonl.gz")):
        print(f"{arguments.data} has no text: name a folder with --data")
        return 3
    texts = read_texts(arguments.data, 4 if arguments.quick else 1)
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
    return {"books": books, "code": code, "other": [in_other_scripts(text) for text in books[::3]]}


def in_other_scripts(text: str) -> str:
    tables = [
        {ord("a") + n: first + n for n in range(26)} | {ord("A") + n: first + n for n in range(26)} for first in SCRIPTS
    ]
    return "\n".join(line.translate(tables[n % len(tables)]) for n, line in enumerate(text.split("\n")))


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
    """Seconds by way, state and kind of text; each round in a process of its own. Raises AssertionError where ids differ."""
    taken: dict[str, dict[str, list[Rates]]] = {}
    for _ in range(rounds):
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                times, digest = pool.apply(encode_all, (folder, way, texts))
            taken.setdefault(way, {}).setdefault(digest, []).append(times)
    assert len({digest for of_way in taken.values() for digest in of_way}) == 1, "the ids differ"
    medians = {}
    for way, of_way in taken.items():
        (all_rounds,) = of_way.values()
        medians[way] = {
            state: {kind: statistics.median(times[state][kind] for times in all_rounds) for kind in texts}
            for state in ("cold", "warm")
        }
    return medians


WAYS = ("fox", "encode_batch", "encode_batch_fast")


def encode_all(folder: Path, way: str, texts: dict[str, list[str]]) -> tuple[Rates, str]:
    """Seconds of the first time and of the second, by kind; and a hash of all ids. Runs in a fresh process."""
    tokenizer = Tokenizer.load(folder)
    encode = way_of(tokenizer, way)
    times: Rates = {"cold": {}, "warm": {}}
    digest = hashlib.sha256()
    for kind, of_kind in texts.items():
        for state in times:
            spent = 0.0
            for batch in batches(of_kind):
                start = time.perf_counter()
                made = encode(batch)
                spent += time.perf_counter() - start
                for ids in made:
                    digest.update(np.uint32(len(ids)).tobytes() + ids.tobytes())
            times[state][kind] = spent
    return times, digest.hexdigest()


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
