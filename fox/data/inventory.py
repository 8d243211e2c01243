"""Which files a run reads, and the hash of each, so that a change of a source is noticed and never mixed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fox.artifacts import sha256_of, sha256_of_json, stamp_of
from fox.data.files import SourceFile, files_of
from fox.data.quarantine import Tally
from fox.progress import Meter
from fox.recipe import Recipe

Inventory = dict[str, dict[str, dict[str, Any]]]
"""For each source, for each of its files: bytes, mtime_ns and sha256; bytes and version, as its store has them; or why it is unreadable, as reading it will find too."""


def read_inventory(path: Path) -> Inventory:
    """The inventory that an earlier command left; an empty one where there is none, or what is there is something else."""
    try:
        return TypeAdapter(Inventory).validate_json(path.read_bytes())
    except (OSError, ValueError):
        return {}


def take_inventory(recipe: Recipe, known: Inventory, meter: Meter) -> Inventory:
    """Hash every file of every source. A file whose size and time are those in `known` keeps the hash it has there."""
    inventory: Inventory = {}
    for name, source in recipe.source.items():
        if source.best_of is not None:  # its files are those of another
            continue
        inventory[name] = {}
        for file in files_of(name, source, Tally(name, source)):
            entry = inventory[name][file.label] = _entry(file, known.get(name, {}).get(file.label, {}))
            meter.advance(entry.get("bytes", 0), note=name)
    return inventory


def fingerprints(inventory: Inventory) -> dict[str, str]:
    """One hash for each source: of its files' names and contents (of one in a store, its version there), not of their times or where they lie."""
    return {
        name: sha256_of_json({label: entry.get("sha256", entry.get("version")) for label, entry in files.items()})
        for name, files in inventory.items()
    }


def contents(inventory: Inventory) -> dict[str, dict[str, Any]]:
    """What a step keeps of it: of each file what tells its content, and nothing of the time."""
    return {
        name: {label: {k: v for k, v in entry.items() if k != "mtime_ns"} for label, entry in files.items()}
        for name, files in inventory.items()
    }


def _entry(file: SourceFile, old: dict[str, Any]) -> dict[str, Any]:
    if file.remote:
        return {"bytes": file.remote.num_bytes, "version": file.remote.version}
    return inventory_entry(file.path, old)


def inventory_entry(path: Path, old: dict[str, Any]) -> dict[str, Any]:
    """A file's bytes, time and hash; that in the `old` entry where its size and time are still the same."""
    try:
        stamp = stamp_of(path)
        same = "sha256" in old and stamp.items() <= old.items()
        return {**stamp, "sha256": old["sha256"] if same else sha256_of(path)}
    except OSError as error:
        return {"unreadable": error.strerror}
