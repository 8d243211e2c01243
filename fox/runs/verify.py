"""Whether a run's corpus and shards are what was made, of the files that it was made of: everything is hashed again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console

from fox.artifacts import sha256_of
from fox.data.corpus.store import files_of_corpus
from fox.data.files import files_of
from fox.data.inventory import Inventory, inventory_entry
from fox.data.quarantine import Tally
from fox.data.shards import SPLITS, shard_path
from fox.errors import Failure, UserError
from fox.formats.token_shards import DIGEST_BYTES, Shard, digests_path
from fox.progress import meter
from fox.recipe import Recipe
from fox.runs.data_steps import FILES
from fox.runs.folder import STEPS, Run

_MADE = ("corpus", "tokenizer", "data")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was made. A source's file that has changed since harms nothing that was made of it."""

    what: str
    problem: str
    harms: bool = True


def verify(run: Run, console: Console) -> tuple[list[Finding], dict[str, int]]:
    """What is wrong, and how many files and documents were looked at. Raises UserError where nothing has been made yet."""
    manifests = {step: manifest for step in _MADE if (manifest := run.manifest(step))}
    if not manifests.keys() & {"corpus", "data"}:
        raise UserError(
            "RUN", str(run.folder), problem="has neither a corpus nor shards", mend="Make them: `fox data RECIPE`."
        )
    found: list[Finding] = []
    looked = {"files made": 0, "files of the sources": 0, "documents": 0}
    with meter("verify", None, "bytes", console=console) as shown:
        for manifest in manifests.values():
            for name, digest in manifest["outputs"].items():
                looked["files made"] += 1
                path = run.folder / name
                if not path.is_file():
                    found.append(Finding(name, "is gone"))
                elif sha256_of(path, shown.advance) != digest:
                    found.append(Finding(name, "has changed since it was made"))
        for finding in _sources(run.recipe, run.folder):
            looked["files of the sources"] += 1
            found += [finding] if finding else []
    if not found or not any(finding.harms for finding in found):
        for step, manifest in manifests.items():
            for finding, documents in _counts(run, step, manifest["facts"].get("sources", {})):
                looked["documents"] += documents
                found += [finding] if finding else []
    return found, looked


def _sources(recipe: Recipe, folder: Path) -> Iterator[Finding | None]:
    """One for each file that was read; None where it is the same still."""
    for step in ("corpus", "data"):
        path = folder / STEPS[step][0] / FILES
        if path.is_file():
            break
    else:
        return
    try:
        kept = TypeAdapter(Inventory).validate_json(path.read_bytes())
    except ValueError:
        return  # damaged, as its hash has told
    for name, files in kept.items():
        try:
            now = {file.label: file for file in files_of(name, recipe.source[name], Tally(name, recipe.source[name]))}
        except UserError as error:
            yield Finding(f"source {name}", str(error), harms=False)
            continue
        for label, entry in files.items():
            if label not in now:
                yield Finding(f"source {name}: {label}", "is gone", harms=False)
                continue
            remote = now[label].remote
            today = {"version": remote.version} if remote else inventory_entry(now[label].path, {})
            same = all(today.get(key) == entry.get(key) for key in ("sha256", "version"))
            yield None if same else Finding(f"source {name}: {label}", "is not what was read", harms=False)
        for label in now.keys() - files.keys():
            yield Finding(f"source {name}: {label}", "is new since", harms=False)


def _counts(run: Run, step: str, sources: dict[str, Any]) -> Iterator[tuple[Finding | None, int]]:
    """Whether each source has as many documents as its manifest says."""
    for name, facts in sources.items():
        if step == "corpus":
            from pyarrow.parquet import ParquetFile

            files = files_of_corpus(run.folder / "corpus", name)
            yield _compared(
                f"corpus of {name}",
                sum(ParquetFile(file).metadata.num_rows for file in files),
                facts["funnel"]["kept"]["documents"],
            )
            continue
        for split in SPLITS:
            path = shard_path(run.folder / "data", name, split)
            try:
                shard = Shard(path, run.needs("tokenizer")["facts"]["vocab_size"])
            except Failure as error:
                yield Finding(str(path), str(error)), 0
                continue
            yield _compared(f"shard {path.name}", len(shard), facts[split]["documents"])
            digests = digests_path(path)
            if digests.is_file():
                yield _compared(digests.name, digests.stat().st_size // DIGEST_BYTES, len(shard))[0], 0


def _compared(what: str, there: int, told: int) -> tuple[Finding | None, int]:
    return (None if there == told else Finding(what, f"has {there:,} documents, and the records say {told:,}")), there
