"""Which files a run reads, and the hash of each, so that a change of a source is noticed and never mixed in."""

from __future__ import annotations

from typing import Any

from fox.artifacts import sha256_of, sha256_of_json
from fox.data.files import files_of
from fox.data.quarantine import Tally
from fox.progress import Meter
from fox.recipe import Recipe

Inventory = dict[str, dict[str, dict[str, Any]]]
"""For each source, for each of its files: bytes, mtime_ns, sha256."""


def take_inventory(recipe: Recipe, known: Inventory, meter: Meter) -> Inventory:
    """Hash every file of every source. A file whose size and time are those in `known` keeps the hash it has there."""
    inventory: Inventory = {}
    for name, source in recipe.source.items():
        inventory[name] = {}
        for file in files_of(name, source, Tally(name, source)):
            stat = file.path.stat()
            entry = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
            old = known.get(name, {}).get(file.label, {})
            same = all(old.get(key) == value for key, value in entry.items()) and "sha256" in old
            inventory[name][file.label] = entry | {"sha256": old["sha256"] if same else sha256_of(file.path)}
            meter.advance(stat.st_size, note=name)
    return inventory


def fingerprints(inventory: Inventory) -> dict[str, str]:
    """One hash for each source: of its files' names and contents, not of their times or where they lie."""
    return {
        name: sha256_of_json({label: entry["sha256"] for label, entry in files.items()})
        for name, files in inventory.items()
    }


def source_bytes(inventory: Inventory) -> int:
    """The size of all files, as they lie on the disk."""
    return sum(entry["bytes"] for files in inventory.values() for entry in files.values())
