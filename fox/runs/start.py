"""The model that a recipe starts from: its shape for the recipe, its files on record, its weights and tokenizer to go on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from fox.artifacts import write_json
from fox.data.inventory import inventory_entry, read_inventory
from fox.errors import UserError
from fox.formats.huggingface import CONFIG
from fox.model import Transformer
from fox.model.stored import StoredModel, open_model
from fox.recipe.schema import Model
from fox.recipe.start import Shape
from fox.runs.folder import Run
from fox.runs.models import NamedModel, find_model, open_named

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")
_OTHER_FILES = (CONFIG, "generation_config.json", "README.md", "model.safetensors.index.json")
_KNOWN = "base_model.json"
"""The hashes of the base model's files, kept in the run so that an unchanged one is hashed once."""


def shape_of(name: str) -> Shape:
    """What the model of this name settles in a recipe. Raises UserError where it means no model that Fox loads."""
    stored = open_model(find_model(name).path)
    values = {key: getattr(stored.config, key) for key in Model.model_fields if hasattr(stored.config, key)}
    return Shape(values, stored.tokenizer.vocab_size)


def files_of_start(run: Run, tokenizer_only: bool = False) -> dict[str, str]:
    """The SHA-256 of each file of the model that the run's recipe starts from, or of those that its tokenizer is read from."""
    assert run.recipe.model.start_from is not None
    path = find_model(run.recipe.model.start_from).path
    known = read_inventory(run.folder / _KNOWN).get("files", {})
    entries = {file.name: inventory_entry(file, known.get(file.name, {})) for file in _files(path, tokenizer_only)}
    for name, entry in entries.items():
        if "sha256" not in entry:
            raise UserError("model.start_from", str(path), problem=f"{name} can't be read: {entry['unreadable']}")
    if not entries.items() <= known.items():
        write_json(run.folder / _KNOWN, {"files": {**known, **entries}})
    return {name: entry["sha256"] for name, entry in entries.items()}


def open_start(run: Run) -> StoredModel:
    """The model that the run's recipe starts from, checked. Its warnings go to standard error."""
    assert run.recipe.model.start_from is not None
    return open_named(find_model(run.recipe.model.start_from))


def trainable(stored: StoredModel) -> Transformer:
    """Its weights in float32, copied into memory: those of a file may lie where they are read from."""
    model = stored.load(torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.requires_grad_()


def base_model_facts(run: Run, stored: StoredModel) -> dict[str, Any]:
    """What the model card tells of it: its name, whether that is one on the hub, and the licence that its files or its run state."""
    assert run.recipe.model.start_from is not None
    named = find_model(run.recipe.model.start_from)
    return {
        "name": named.title,
        "from_hub": bool(named.hub_name),
        "license": stored.license or _license_of_run(named),
        "weights": sorted(set(stored.weights.stored_types.values())),
    }


def _files(path: Path, tokenizer_only: bool) -> list[Path]:
    if path.is_file():
        return [path]
    named = _TOKENIZER_FILES if tokenizer_only else (*_TOKENIZER_FILES, *_OTHER_FILES)
    weights = [] if tokenizer_only else sorted(path.glob("*.safetensors"))
    return [path / name for name in named if (path / name).is_file()] + weights


def _license_of_run(named: NamedModel) -> str:
    if named.run is None:
        return ""
    try:
        stated = json.loads((named.run / "recipe.json").read_bytes())["recipe"]["license"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"warning: {named.run}/recipe.json can't be read ({error}): its licence is not known.\n")
        return ""
    return stated if isinstance(stated, str) else ""
