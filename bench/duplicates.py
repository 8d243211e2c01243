"""How well near-duplicates are found among documents, how fast, and in how much memory: Fox beside datatrove's MinHash blocks.

    python bench/duplicates.py [--quick] [--data FOLDER] [--json FILE]

FOLDER (../shared/data/text beside this repository where it is not given) has documents, one a line.

planted   documents of 60 to 3,000 words, each with a copy in which words are replaced, left out and put in, or stretches are those of another
          document. How much is changed is spread so that the true Jaccard index of runs of five words goes from 0.3 to 1, with half of the pairs
          near 0.8. It is counted here, over words without case and punctuation, by other code than Fox's. A pair is found where one of it is dropped. Of
          each dropped document the true index to the one that is kept instead is counted, too.
repeated  every sixth document once, and four times with other words replaced in each copy: megabytes of text a second, and peak memory.
          Then, Fox alone, all documents so, in a task a copy.

Both read and write JSON Lines without compression, each in a process of its own with one worker; for datatrove the documents are one task.
Its blocks are as they come: 14 bands of 8, English. Peak memory is of the whole process, Python and all.
Goals: 95 % of the pairs within 0.01 of 0.8 found, below 1 % of the dropped documents with less than 0.5 in common with the kept one, at least datatrove's
speed in no more memory. Exit code 0 where all are met, 1 where one is missed, 3 where datatrove (`pip install datatrove spacy 'xxhash<4' orjson`)
or the documents are missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RECALL_GOAL = 0.95
STRANGERS_GOAL = 0.01
BINS = ((0.3, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.75), (0.75, 0.79), (0.79, 0.81), (0.81, 0.85), (0.85, 0.9), (0.9, 1.01), (0.8, 1.01))  # fmt: skip
SIDES = ("fox", "datatrove")


class Outcome(NamedTuple):
    """What a side did with a file: which documents it dropped, and which it kept for each."""

    kept_for: dict[int, int]
    seconds: float
    peak_mb: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fourth of the planted pairs, nothing repeated")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "text")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_fox(arguments.files) if arguments.side == "fox" else _datatrove(arguments.files[0])))
        return 0
    if not list(arguments.data.glob("*.jsonl.gz")):
        print(f"{arguments.data} has no documents: name a folder with --data")
        return 3
    try:
        import datatrove  # noqa: F401
        import spacy  # noqa: F401
        import xxhash  # noqa: F401
    except ImportError as error:
        print(f"{error.name or error} is not installed: pip install datatrove spacy 'xxhash<4' orjson")
        return 3
    texts = list(read_texts(arguments.data))
    with tempfile.TemporaryDirectory() as folder:
        return tell(*measure_planted(texts, Path(folder), 1000 if arguments.quick else 4000), texts, arguments)


def read_texts(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)["text"]


def shingles_of(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", text.lower())
    return set(zip(*(words[place:] for place in range(5)), strict=False))


def jaccard(text: str, other: str) -> float:
    both = shingles_of(text), shingles_of(other)
    return len(both[0] & both[1]) / (len(both[0] | both[1]) or 1)


def edited(text: str, wanted: float, stranger: str, random_: random.Random) -> str:
    """The text with so much changed that about `wanted` of all runs of five words are in both: words all over, or a stretch in two."""
    shared = 2 * wanted / (1 + wanted)  # of each one's runs
    words = re.split(r"(?<=\s)(?=\S)", text)
    if random_.random() < 0.5:
        rate, strange = 1 - shared**0.2, stranger.split()
        for place in range(len(words)):
            if random_.random() < rate:
                match random_.randrange(3):
                    case 0:
                        words[place] = ""
                    case 1:
                        words[place] += f"{random_.choice(strange)} "
                    case _:
                        words[place] = f"{random_.choice(strange)} "
        return "".join(words)
    size = round((1 - shared) * len(words))
    start = random_.randrange(len(words) - size + 1)
    return "".join((*words[:start], " ".join(stranger.split()[:size]), " ", *words[start + size :]))


def plant(texts: list[str], count: int) -> tuple[list[str], list[tuple[int, int, float]]]:
    """Documents, and the pairs among them that were planted: (a document, its copy behind it, their true Jaccard index)."""
    random_ = random.Random(7)
    usable = [text for text in texts if 60 <= len(text.split()) <= 3000]
    chosen = random_.sample(usable, count)
    documents, pairs = list(chosen), []
    for number, text in enumerate(chosen):
        wanted = random_.uniform(0.3, 1.0) if number % 2 else random_.uniform(0.77, 0.83)
        copy = edited(text, wanted, chosen[number - 1], random_)
        pairs.append((number, len(documents), jaccard(text, copy)))
        documents.append(copy)
    return documents, pairs


def write_documents(path: Path, texts: Iterable[str]) -> float:
    """A file of JSON Lines; how many MB of text it has."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
            size += len(text.encode())
    return size / 1e6


def run(side: str, *paths: Path) -> Outcome:
    """One side on these files, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, *map(str, paths)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return Outcome({int(index): kept for index, kept in told["kept_for"].items()}, told["seconds"], told["peak_mb"])


def _fox(paths: list[Path]) -> dict[str, Any]:
    """Each file is a task; documents are told by their number in all."""
    from fox.data.duplicates.drops import Drops
    from fox.data.duplicates.groups import find_duplicates
    from fox.data.duplicates.near import verify_all
    from fox.data.duplicates.signatures import num_buckets, signature_files, signature_writer
    from fox.recipe.schema import Duplicates

    def texts_of(task: int, indexes: Iterable[int]) -> Iterator[str]:
        wanted = set(map(int, indexes))
        with paths[task].open(encoding="utf-8") as file:
            yield from (json.loads(line)["text"] for index, line in enumerate(file) if index in wanted)

    start, settings, kept_for = time.perf_counter(), Duplicates(), {}
    first_of = [0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task, path in enumerate(paths):
            with path.open(encoding="utf-8") as file, signature_writer(folder, task, settings) as writer:
                for line in file:
                    writer.add(json.loads(line)["text"])
            first_of.append(first_of[-1] + writer.documents)
        for bucket in range(num_buckets(signature_files(folder, settings))):
            find_duplicates(folder, bucket, settings)
        verify_all(folder, texts_of, settings)
        for task, path in enumerate(paths):
            drops = Drops.load(folder, task, settings)
            with path.open(encoding="utf-8") as file, (folder / f"{task}.jsonl").open("w", encoding="utf-8") as kept:
                kept.writelines(line for index, line in enumerate(file) if index not in drops.documents)
            for index, drop in drops.documents.items():
                kept_for[first_of[task] + index] = first_of[drop.kept_task] + drop.kept_index
    return _measured(kept_for, start)


def _datatrove(path: Path) -> dict[str, Any]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    start, config = time.perf_counter(), MinhashConfig()
    with tempfile.TemporaryDirectory() as folder:

        def read() -> Any:
            return JsonlReader(str(path.parent), glob_pattern=path.name, compression=None)

        for step, blocks in enumerate(
            (
                [read(), MinhashDedupSignature(f"{folder}/signatures", config)],
                [MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)],
                [MinhashDedupCluster(f"{folder}/buckets", f"{folder}/clusters", config, save_cluster_id=True)],
                [
                    read(),
                    MinhashDedupFilter(f"{folder}/clusters"),
                    JsonlWriter(f"{folder}/kept", compression=None),
                ],
            )
        ):
            tasks = config.num_buckets if step == 1 else 1
            LocalPipelineExecutor(blocks, tasks=tasks, workers=1, logging_dir=f"{folder}/logs/{step}").run()
        told = _measured({}, start)
        removed = set(_numbers(Path(folder, "clusters", "000000.remove"), "<I"))
        clusters = defaultdict(list)
        for index, cluster in _numbers(Path(folder, "clusters", "000000.clusters"), "<2I"):
            clusters[cluster].append(index)
    for members in clusters.values():
        (kept,) = set(members) - {index for (index,) in removed}
        told["kept_for"] |= {index: kept for index in members if index != kept}
    return told


def _numbers(path: Path, form: str) -> Iterator[tuple[int, ...]]:
    return struct.iter_unpack(form, path.read_bytes() if path.exists() else b"")


def _measured(kept_for: dict[int, int], start: float) -> dict[str, Any]:
    seconds = time.perf_counter() - start
    (peak,) = re.findall(
        r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()
    )  # getrusage tells of the parent's, too
    return {"kept_for": kept_for, "seconds": seconds, "peak_mb": int(peak) / 1024}


class Quality(NamedTuple):
    """What a side found: of the pairs in each bin the share found and their number; of the dropped, how many and the share of strangers."""

    found: list[tuple[float, int]]
    dropped: int
    strangers: float


def measure_planted(texts: list[str], folder: Path, count: int) -> tuple[dict[str, Quality], dict[str, tuple[float, Outcome]]]:  # fmt: skip
    """Of each side what it found, and (MB/s, its outcome)."""
    documents, pairs = plant(texts, count)
    size = write_documents(folder / "planted.jsonl", documents)
    quality, speeds = {}, {}
    for side in SIDES:
        outcome = run(side, folder / "planted.jsonl")
        dropped = outcome.kept_for
        found = []
        for low, high in BINS:
            hits = [index in dropped or copy in dropped for index, copy, share in pairs if low <= share < high]
            found.append((sum(hits) / max(1, len(hits)), len(hits)))
        far = sum(jaccard(documents[index], documents[kept]) < 0.5 for index, kept in dropped.items())
        quality[side] = Quality(found, len(dropped), far / max(1, len(dropped)))
        speeds[side] = size / outcome.seconds, outcome
    return quality, speeds


def repeated(texts: list[str], copy: int) -> Iterator[str]:
    """The texts; a later copy of each has about 0.3 to 1 in common with the first."""
    if not copy:
        yield from texts
        return
    random_ = random.Random(copy)
    for number, text in enumerate(texts):
        yield edited(text, random_.uniform(0.3, 1.0), texts[number - 1], random_)


def measure_repeated(texts: list[str], folder: Path, sides: Iterable[str]) -> dict[tuple[str, int], tuple[float, float]]:  # fmt: skip
    """(MB/s, peak MB) of each side for the texts once and four times."""
    sizes = [write_documents(folder / f"copy{copy}.jsonl", repeated(texts, copy)) for copy in range(4)]
    figures = {}
    with (folder / "all.jsonl").open("wb") as file:
        for copy in range(4):
            file.write((folder / f"copy{copy}.jsonl").read_bytes())
    for side in sides:
        for copies in (1, 4):
            whole = [folder / ("all.jsonl" if copies == 4 else "copy0.jsonl")]
            paths = [folder / f"copy{copy}.jsonl" for copy in range(copies)] if side == "fox" else whole
            outcome = run(side, *paths)
            figures[side, copies] = sum(sizes[:copies]) / outcome.seconds, outcome.peak_mb
    return figures


def tell(
    quality: dict[str, Quality],
    planted: dict[str, tuple[float, Outcome]],
    texts: list[str],
    arguments: argparse.Namespace,
) -> int:
    """Measure what is repeated, print the tables, keep the row, and judge."""
    print(f"{'pairs with J':>24}" + "".join(f"{side:>14}" for side in SIDES) + f"{'of':>8}")
    for number, (low, high) in enumerate(BINS):
        shares = "".join(f"{quality[side].found[number][0]:14.1%}" for side in SIDES)
        print(f"{f'{low:.2f} to {min(high, 1):.2f}':>24}{shares}{quality['fox'].found[number][1]:8}")
    print(f"{'dropped':>24}" + "".join(f"{quality[side].dropped:14}" for side in SIDES))
    print(f"{'of these with J < 0.5':>24}" + "".join(f"{quality[side].strangers:14.2%}" for side in SIDES))
    near, above = (BINS.index(each) for each in ((0.79, 0.81), (0.8, 1.01)))
    recall, strangers = quality["fox"].found[near][0], quality["fox"].strangers
    figures = {("planted", side): (speed, outcome.peak_mb) for side, (speed, outcome) in planted.items()}
    if not arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            some = measure_repeated(texts[::6], Path(folder), SIDES)
            figures |= {(f"a sixth, {copies}x", side): figure for (side, copies), figure in some.items()}
        with tempfile.TemporaryDirectory() as folder:
            whole = measure_repeated(texts, Path(folder), ["fox"])
            figures |= {(f"all, {copies}x", side): figure for (side, copies), figure in whole.items()}
    print(f"\n{'':24}" + "".join(f"{side:>28}" for side in SIDES))
    for name in dict.fromkeys(name for name, _ in figures):
        sides = (figures.get((name, side)) for side in SIDES)
        print(f"{name:>24}" + "".join(f"{each[0]:14.2f} MB/s{each[1]:6.0f} MB" for each in sides if each))
    compared = [name for name, side in figures if side == "datatrove"]
    ratio = min(figures[name, "fox"][0] / figures[name, "datatrove"][0] for name in compared)
    leaner = all(figures[name, "fox"][1] <= figures[name, "datatrove"][1] for name in compared)
    result = {
        "pairs found at J = 0.79 to 0.81": ", ".join(f"{side} {quality[side].found[near][0]:.1%}" for side in SIDES),
        "at 0.8 and more": ", ".join(f"{side} {quality[side].found[above][0]:.1%}" for side in SIDES),
        "dropped with J < 0.5": ", ".join(f"{side} {quality[side].strangers:.2%}" for side in SIDES),
        "MB/s and peak MB": ", ".join(
            f"{name} {side} {speed:.2f} in {peak:.0f}" for (name, side), (speed, peak) in figures.items()
        ),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    if not arguments.quick:
        from results import record  # here, for it imports torch, whose memory would count as that of the sides

        record("duplicates.py", result)
    print(
        f"duplicates: recall {recall:.1%} (goal {RECALL_GOAL:.0%}); strangers {strangers:.2%} (goal {STRANGERS_GOAL:.0%});"
        f" peak memory {'not ' * (not leaner)}below datatrove's; ratio {ratio:.1f} (goal 1.0)"
    )
    return 0 if recall >= RECALL_GOAL and strangers < STRANGERS_GOAL and ratio >= 1 and leaner else 1


if __name__ == "__main__":
    sys.exit(main())
