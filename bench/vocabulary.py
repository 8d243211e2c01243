"""What the size of the vocabulary costs and buys: 256,000 entries and its first 32,000, 64,000 and 128,000, on several languages and code.

    python bench/vocabulary.py [--quick] [--data FOLDER] [--cache FOLDER] [--json FILE]

The text: English from FOLDER (../shared/data/text beside this repository where it is not given), and from Debian packages, which `apt-get download`
brings by their names into the cache, once: manual pages in eight languages, the sources of Go, and the Python files of the interpreter that runs this.
Nothing of it is kept in the repository; the licences that each package states are printed. Of each kind at most 20 MB are learnt from, and one
document in twenty, chosen by its hash, is held out; English books are held out as a whole, so that one text is from elsewhere.

One training gives 256,000 entries, and the others are cut from it. For each size: the parameters of the tied embedding at Fox-1's width of 2,048 and
their share of the model, which is the head's share of a forward pass' arithmetic, too (2 a parameter, without attention's products); bytes a token on
what was held out; entries that none of it has used; and the arithmetic a byte of text, blocks and head together, beside 32,000 entries. Beside them stands SmolLM2's vocabulary of 49,152, where it is there (bench/real_weights.py says how it comes): it was learnt from other text.

Goal: the training's peak of memory, above that of the process before, is at most 16 times its sample (each a byte of UTF-8). Exit code 0 where it is met, 1 where it
is missed, 3 where text is missing or can't be had.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from real_weights import weights
from results import ROOT, record

from fox.cache import cache_folder
from fox.tokenizer import Tokenizer
from fox.tokenizer.cut import cut_tokenizer
from fox.tokenizer.fit import fit_of, unused_entries
from fox.tokenizer.train import train_tokenizer

GOAL = 16.0
"""Bytes of memory a byte of sample, at most."""

SIZES = (32_000, 64_000, 128_000, 256_000)
HIDDEN, BLOCKS = 2048, 1_140_981_760  # Fox-1's (arXiv 2411.05281, and its released configuration)
MOST_BYTES = 20_000_000
CACHE = cache_folder() / "vocabulary"
"""Where packages are kept."""
HELD_OUT = 20

PACKAGES = {
    "German": ["manpages-de", "manpages-de-dev"],
    "French": ["manpages-fr", "manpages-fr-dev"],
    "Spanish": ["manpages-es"],
    "Polish": ["manpages-pl"],
    "Russian": ["manpages-ru"],
    "Ukrainian": ["manpages-uk"],
    "Japanese": ["manpages-ja", "manpages-ja-dev"],
    "Chinese": ["manpages-zh"],
    "Go": ["golang-1.19-src"],
}
_LICENSE = re.compile(r"^License: *(\S.*)", re.MULTILINE)
_ROFF = re.compile(r'^\.\\".*\n|^\.[A-Za-z]{1,2}\b ?|\\f(?:\[\w*\]|\(..|.)|\\[&/,]|\\s[+-]?\d', re.MULTILINE)
"""The marks of manual pages that are no text: comments, requests, changes of fonts and sizes."""

Texts = dict[str, list[str]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the text, and a quarter of the entries")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "text")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where packages are kept")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    if not list(arguments.data.glob("wikipedia-*.jsonl.gz")):
        print(f"{arguments.data} has no text: name a folder with --data")
        return 3
    try:
        packages = {kind: [fetched(name, arguments.cache) for name in names] for kind, names in PACKAGES.items()}
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"a package can't be had: {error}. This needs apt-get and dpkg-deb, as Debian has them")
        return 3
    learnt, heldout = parted(read_texts(arguments.data, packages), MOST_BYTES // (10 if arguments.quick else 1))
    sizes = [size // (4 if arguments.quick else 1) for size in SIZES]
    with tempfile.TemporaryDirectory() as place:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # of its own, so that its memory is told apart
            sample_bytes, peak, seconds = pool.apply(train, (learnt, sizes[-1], Path(place)))
        largest = Tokenizer.load(Path(place))
        made = {
            f"{size:,}": largest if size == sizes[-1] else cut_tokenizer(largest, size) for size in sizes
        }  # fmt: skip
    if weights().exists():
        from fox.model.stored import open_model

        smollm2 = open_model(weights()).tokenizer
        made[f"SmolLM2's {smollm2.vocab_size:,}"] = smollm2
    print(
        f"\nlearnt from {sample_bytes / 1e6:.0f} MB in {seconds:.0f} s, with {peak / 1e6:.0f} MB of memory: {peak / sample_bytes:.1f} a byte"
    )
    return tell(made, heldout, peak / sample_bytes, seconds, arguments)


def fetched(name: str, cache: Path) -> Path:
    """The folder of a package's files; it is downloaded, and its licences are told."""
    folder = cache / name
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            subprocess.run(["apt-get", "download", name], cwd=place, check=True, capture_output=True)
            (package,) = Path(place).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(package), f"{place}/files"], check=True)
            (Path(place) / "files").rename(folder)
    stated = folder / "usr/share/doc" / name / "copyright"
    found = _LICENSE.findall(stated.read_text("utf-8", errors="replace")) if stated.exists() else []
    print(f"{name}: {', '.join(sorted(set(found))) or 'see its copyright file'}")
    return folder


def read_texts(data: Path, packages: dict[str, list[Path]]) -> Texts:
    """Documents by kind. Books are only measured on (see `parted`)."""
    texts: Texts = {"English": rows(data, "wikipedia"), "English books": rows(data, "books")}
    for kind, folders in packages.items():
        files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())  # fmt: skip
        texts[kind] = [text for path in files if (text := text_of(path))]
    library = Path(sysconfig.get_path("stdlib"))
    texts["Python"] = [path.read_text("utf-8", errors="ignore") for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]  # fmt: skip
    return texts


def rows(data: Path, name: str) -> list[str]:
    files = (gzip.decompress(path.read_bytes()) for path in sorted(data.glob(f"{name}-*.jsonl.gz")))
    return [json.loads(line)["text"] for file in files for line in file.splitlines()]


def text_of(path: Path) -> str:
    if path.suffix == ".go":
        return path.read_text("utf-8", errors="ignore")
    if path.suffix == ".gz" and "man" in path.parts:
        return _ROFF.sub("", gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore"))
    return ""


def parted(texts: Texts, most: int) -> tuple[list[str], Texts]:
    """What is learnt from, and what is held out of each kind: each document once, in the order of its hash."""
    learnt: list[str] = []
    heldout: Texts = {}
    for kind, of_kind in texts.items():
        by_hash = sorted({hashlib.sha256(text.encode()).digest(): text for text in of_kind}.items())
        out = {digest for digest, _ in by_hash if kind == "English books" or digest[-1] % HELD_OUT == 0}
        heldout[kind] = list(up_to(most // 4, (text for digest, text in by_hash if digest in out)))
        learnt += up_to(most, (text for digest, text in by_hash if digest not in out))
    return learnt, heldout


def up_to(most: int, texts: Iterator[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        if size >= most:
            return
        size += len(text.encode())
        yield text


def train(texts: list[str], entries: int, folder: Path) -> tuple[int, int, float]:
    """Bytes of the sample, bytes of memory that the training added at its peak, and seconds. Runs in a fresh process."""
    encoded = [text.encode() for text in texts]
    texts.clear()
    sample_bytes = sum(map(len, encoded))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    start = time.perf_counter()
    tokenizer = train_tokenizer((text.decode() for text in encoded), entries, 8192)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    tokenizer.save(folder)
    return sample_bytes, peak, seconds


def tell(
    made: dict[str, Tokenizer], heldout: Texts, memory: float, seconds: float, arguments: argparse.Namespace
) -> int:
    fits = {name: {kind: fit_of(tokenizer, texts) for kind, texts in heldout.items()} for name, tokenizer in made.items()}  # fmt: skip
    columns = list(made)
    lines: dict[str, list[str]] = {
        "M parameters of the embedding": [f"{tokenizer.vocab_size * HIDDEN / 1e6:.0f}" for tokenizer in made.values()],
        "share of the model, and of arithmetic": [f"{_head(tokenizer) / (_head(tokenizer) + BLOCKS):.0%}" for tokenizer in made.values()],
        "entries without use": [f"{unused_entries(tokenizer, fits[name].values()) / tokenizer.vocab_size:.0%}" for name, tokenizer in made.items()],
    }  # fmt: skip
    for kind, texts in heldout.items():
        size = sum(len(text.encode()) for text in texts)
        lines[f"bytes a token: {kind} ({size / 1e6:.1f} MB)"] = [f"{fits[name][kind].bytes_per_token:.2f}" for name in columns]  # fmt: skip
    mean = {name: sum(fit.bytes_per_token for fit in fits[name].values()) / len(heldout) for name in columns}
    lines["bytes a token: mean of the kinds"] = [f"{mean[name]:.2f}" for name in columns]
    a_byte = {name: 2 * (BLOCKS + _head(tokenizer)) / mean[name] for name, tokenizer in made.items()}
    lines["arithmetic a byte, beside the first"] = [f"{a_byte[name] / a_byte[columns[0]]:.2f}" for name in columns]
    width = max(map(len, lines))
    print(f"\n{'entries':{width}}{''.join(f'{name:>18}' for name in columns)}")
    for label, figures in lines.items():
        print(f"{label:{width}}{''.join(f'{figure:>18}' for figure in figures)}")
    result = {
        "memory a byte of sample": f"{memory:.1f}",
        "seconds of the training": f"{seconds:.0f}",
        **{f"{name}: mean bytes a token, arithmetic a byte": f"{mean[name]:.2f}, {a_byte[name] / a_byte[columns[0]]:.2f}" for name in columns},
    }  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({"columns": columns, **lines}, indent=2), encoding="utf-8")
    if not arguments.quick:
        record("vocabulary.py", result)
    print(f"\nvocabulary: {memory:.1f} bytes of memory a byte of sample (goal: at most {GOAL:.0f})")
    return 0 if memory <= GOAL else 1


def _head(tokenizer: Tokenizer) -> int:
    return tokenizer.vocab_size * HIDDEN


if __name__ == "__main__":
    sys.exit(main())
