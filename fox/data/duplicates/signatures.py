"""What tells a task's documents apart, in some hundred bytes each: a digest of the text, 20 bands of its shingles, hashes of its lines.

Rows lie in PARTS parts by their keys, which are hashes: a bucket is a range of parts, and has about the same share of every task's rows. A document
costs 20 bytes for its digest, 320 for its bands and, where lines are compared, 16 for each long one: of 10^9 documents 340 GB, read once each
by their bucket.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fox.data.duplicates.minhash import BANDS, ROWS, band_keys
from fox.data.duplicates.parted import PartedFile, PartedWriter, parted_file
from fox.data.duplicates.shingles import SHINGLE_WORDS, shingles_in, words_in
from fox.errors import Failure
from fox.recipe.schema import Duplicates

PARTS = 8192
"""The most buckets that there can be: at BUCKET_BYTES each, for some 1.2 x 10^9 documents."""

BUCKET_BYTES = 48 * 2**20
"""Of a bucket's rows of one table. A worker needs up to nine times as much to sort and pair them: less than 512 MiB, whatever the size of the corpus.
Only one and the same text, or line, of millions of documents can't be divided: its rows, of 16 to 20 bytes, are in one bucket."""

MIN_LINE_WORDS = 8
"""Shorter lines stay wherever they are: closing brackets, "he said", headings and rows of a table make sense where they stand. (CCNet, arXiv 1911.00359,
takes every line; C4, arXiv 1910.10683, section 2.2, three sentences in a row.)"""

_LONG_LINE = re.compile(rf"[^\n]{{{MIN_LINE_WORDS},}}")  # no list of lines, of which a text may have millions

EXACT = np.dtype([("key", "<u8"), ("rest", "<u8"), ("index", "<u4")])
BAND = np.dtype([("key", "<u8"), ("print", "<u4"), ("index", "<u4")])
"""`print` is some of the text's digest, to know one and the same text in a band."""
LINE = np.dtype([("key", "<u8"), ("index", "<u4"), ("line", "<u4")])
TABLES = {"exact": EXACT, "band": BAND, "line": LINE}

_RUN_BYTES = 32 * 2**20
"""So much is sorted into parts and written at a time."""
_BATCH_SHINGLES = 2**16
"""Shingles whose bands are computed at once: they fit a core's cache."""


@contextmanager
def signature_writer(folder: Path, task: int, settings: Duplicates) -> Iterator[SignatureWriter]:
    """Takes a task's documents one by one; its signatures are there, whole, once the block has ended well."""
    about: dict[str, Any] = {"made_with": made_with(settings)}
    with parted_file(_path(folder, task), about) as file:
        writer = SignatureWriter(file, settings)
        yield writer
        writer.flush()
        about["documents"] = writer.documents


class SignatureWriter:
    """One task's signatures; `signature_writer` makes one."""

    def __init__(self, file: PartedWriter, settings: Duplicates) -> None:
        self.documents = 0
        self._file = file
        self._settings = settings
        self._rows = {table: bytearray() for table in TABLES}
        self._digests: set[bytes] = set()
        self._shingles: list[np.ndarray] = []
        self._owners: list[tuple[int, int]] = []
        self._num_shingles = 0

    def add(self, text: str) -> None:
        """The task's next document."""
        index, self.documents = self.documents, self.documents + 1
        digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        self._rows["exact"] += digest + index.to_bytes(4, "little")
        if digest not in self._digests:  # else it goes, and nothing more need be known of it
            self._digests.add(digest)
            if self._settings.near:
                self._add_shingles(text, int.from_bytes(digest[:4], "little"), index)
            if self._settings.lines:
                lines = [(key, index, line) for line, key in long_lines(text)]
                self._rows["line"] += np.array(lines, dtype=LINE).tobytes()
        if sum(map(len, self._rows.values())) >= _RUN_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        self._add_bands()
        self._digests.clear()
        for table, raw in self._rows.items():
            if raw:
                rows = np.frombuffer(bytes(raw), dtype=TABLES[table])
                parts = (rows["key"] // np.uint64(2**64 // PARTS)).astype(np.uint16)
                order = np.argsort(parts, kind="stable")
                self._file.add(table, rows[order], parts[order], PARTS)
                raw.clear()

    def _add_shingles(self, text: str, fingerprint: int, index: int) -> None:
        shingles = shingles_in(words_in(text))
        if shingles.size:
            self._shingles.append(shingles)
            self._owners.append((fingerprint, index))
            self._num_shingles += shingles.size
            if self._num_shingles >= _BATCH_SHINGLES:
                self._add_bands()

    def _add_bands(self) -> None:
        if self._owners:
            rows = np.empty((len(self._owners), BANDS), dtype=BAND)
            rows["key"] = band_keys(self._shingles)
            owners = np.array(self._owners, dtype=np.uint32)
            rows["print"], rows["index"] = owners[:, :1], owners[:, 1:]
            self._rows["band"] += rows.tobytes()
            self._shingles.clear()
            self._owners.clear()
            self._num_shingles = 0


def long_lines(text: str) -> Iterator[tuple[int, int]]:
    """(line number from 0, the hash of its words) for each line of MIN_LINE_WORDS words and more; lines end with a newline."""
    number = counted = 0
    for line in _LONG_LINE.finditer(text):
        number, counted = number + text.count("\n", counted, line.start()), line.start()
        words = words_in(line[0])
        if words.size >= MIN_LINE_WORDS:
            yield number, int.from_bytes(hashlib.blake2b(words.tobytes(), digest_size=8).digest(), "little")


def made_with(settings: Duplicates) -> dict[str, Any]:
    """What signatures depend on. Those that were made with something else can't be compared."""
    return {
        "version": 1,
        "near": settings.near,
        "lines": settings.lines,
        "shingle_words": SHINGLE_WORDS,
        "bands": BANDS,
        "rows": ROWS,
    }


def signature_files(folder: Path, settings: Duplicates) -> list[PartedFile]:
    """The signatures of all tasks, by their numbers. Raises Failure where one is missing, damaged or made with other settings."""
    paths = sorted((folder / "signatures").glob("[0-9]*.parts"))
    files = []
    for task, path in enumerate(paths):
        if path != _path(folder, task):
            raise Failure(f"{_path(folder, task)}: is missing. Make the signatures of all tasks first.")
        files.append(PartedFile(path))
        if files[-1].about["made_with"] != made_with(settings):
            raise Failure(f"{path}: was made with other settings. Remove the folder and begin again.")
    if not files:
        raise Failure(f"{folder}: has no signatures. Make those of all tasks first.")
    return files


def num_buckets(files: list[PartedFile]) -> int:
    """Into how many buckets these signatures are divided, so that a worker stays below 512 MiB (see BUCKET_BYTES)."""
    largest = max(sum(file.bytes_of(table) for file in files) for table in TABLES)
    return min(PARTS, max(1, -(-largest // BUCKET_BYTES)))


def _path(folder: Path, task: int) -> Path:
    return folder / "signatures" / f"{task:06}.parts"
