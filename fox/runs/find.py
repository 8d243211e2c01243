"""Which shards, corpora and runs hold a document: found by the hash of its content, or by its address."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fox.data.corpus.store import files_of_corpus
from fox.data.files import READABLE, SourceFile, suffix_of
from fox.data.personal import KINDS, mask_personal
from fox.data.quarantine import BadRecord, visible
from fox.data.rows import rows_of
from fox.errors import Failure, UserError
from fox.formats.token_shards import DIGEST_BYTES

_TRAININGS = {"pretrain": "model", "tune": "tuned"}


class Found(NamedTuple):
    """Where a document is."""

    run: Path
    place: str
    models: list[str]
    """Of the run's, made since: what they may have learnt from it, if it is no held-out document."""


def find_document(wanted: str, runs: list[Path]) -> tuple[set[str], list[Found], list[Path]]:
    """The ids of what `wanted` names, where they are, and the shards that keep no ids (older ones).

    `wanted` is a text file, `-` for standard input, an id or a SHA-256 in hexadecimal, or a document's address. Raises UserError where
    it is none of these, and where no run is found.
    """
    folders = [folder for run in runs for folder in _runs_below(run)]
    if not folders:
        raise UserError(
            "--runs", [str(run) for run in runs], problem="holds no run", mend="Name a run, or a folder of runs."
        )
    corpora = {folder: _sources(folder / "corpus") for folder in folders}
    if re.match(r"[a-z][a-z0-9+.-]*://", wanted, re.IGNORECASE):
        ids = {
            row["id"]
            for folder, names in corpora.items()
            for name in names
            for row in _rows(folder, name, "url", wanted)
        }
    else:
        ids = _ids_of(wanted)
    found, without = [], []
    for folder in folders:
        models = [model for step, model in _TRAININGS.items() if (folder / f"manifests/{step}.json").is_file()]
        for name in corpora[folder]:
            for row in (row for identity in sorted(ids) for row in _rows(folder, name, "id", identity)):
                about = f" ({visible(row['url'])})" if row["url"] else ""
                found.append(Found(folder, f"corpus, source {name}: {visible(row['place'])}{about}", []))
        for shard in sorted((folder / "data").glob("*.ds")):
            digests = shard.with_name(f"{shard.name}.documents")
            if not digests.is_file():
                without.append(shard)
                continue
            for number in _numbers(digests, ids):
                is_heldout = shard.name.endswith(".heldout.ds")
                found.append(Found(folder, f"data/{shard.name}, document {number}", [] if is_heldout else models))
    return ids, found, without


def _runs_below(folder: Path) -> list[Path]:
    if (folder / "manifests").is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/manifests") if path.is_dir())


def _ids_of(wanted: str) -> set[str]:
    """Of a text all forms in which it may be kept: as its bytes are and as they are read, with and without a last line's end, with and without
    personal data."""
    if re.fullmatch(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{64}", wanted):
        return {wanted.lower()[: 2 * DIGEST_BYTES]}
    path = Path(wanted)
    try:
        content = sys.stdin.buffer.read() if wanted == "-" else path.read_bytes()
        suffix = suffix_of(path.name) or ".txt"
        file = SourceFile(path, path.name, suffix if suffix in READABLE else ".txt")
        rows = [] if wanted == "-" else [row.value for row in rows_of(file, "text")]
    except BadRecord:  # no text, or damaged; its bytes may be known still
        rows = []
    except (OSError, ValueError) as error:
        mend = "Name a text file, - for standard input, an id (32 hexadecimal digits), or the document's address."
        raise UserError(
            "DOCUMENT", wanted, problem=f"can't be read: {getattr(error, 'strerror', error)}", mend=mend
        ) from None
    read = [row["text"] for row in rows if isinstance(row, dict) and isinstance(row.get("text"), str)]
    texts = {content.decode("utf-8-sig", errors="ignore").replace("\r\n", "\n"), *read}
    forms = {form for text in texts for form in (text, text.rstrip("\n"), text.rstrip("\n") + "\n")}
    forms |= {mask_personal(form, KINDS)[0] for form in forms}
    contents = [content, *(form.encode(errors="replace") for form in forms)]
    return {hashlib.sha256(form).hexdigest()[: 2 * DIGEST_BYTES] for form in contents}


def _sources(corpus: Path) -> list[str]:
    try:
        return list(json.loads((corpus / "funnel.json").read_bytes()))
    except (OSError, ValueError):
        return []


def _rows(run: Path, source: str, column: str, value: str) -> Iterator[dict[str, str]]:
    import pyarrow
    from pyarrow import parquet

    for path in files_of_corpus(run / "corpus", source):
        try:
            found = parquet.read_table(path, columns=["id", "place", "url"], filters=[(column, "==", value)])
        except (pyarrow.ArrowException, OSError) as error:
            raise Failure(f"{path}: is damaged ({error}). `fox data verify {run}` tells what else is.") from None
        yield from found.to_pylist()


def _numbers(digests: Path, ids: set[str]) -> list[int]:
    """The numbers, from 0, of the documents with these ids."""
    if digests.stat().st_size % DIGEST_BYTES:
        raise Failure(
            f"{digests}: is damaged: its size is no multiple of {DIGEST_BYTES}. Make the shards again: --redo data."
        )
    known = np.memmap(digests, dtype=f"V{DIGEST_BYTES}", mode="r") if digests.stat().st_size else np.empty(0, "V16")
    wanted = np.array([bytes.fromhex(identity) for identity in ids], dtype=f"V{DIGEST_BYTES}")
    return [int(number) for identity in wanted for number in np.flatnonzero(known == identity)]
