"""What a step takes from the recipe: what it was done with is held against it whenever a run is looked at again."""

from __future__ import annotations

import json
from typing import Any

from fox.recipe import Recipe
from fox.recipe.schema import MAY_CHANGE, Data
from fox.runs.folder import sections, without_rows

Facts = dict[str, Any]
Inputs = dict[str, Any]

_TABLES = {
    "corpus": ("source", "data"),
    "tokenizer": ("source", "data", "tokenizer"),
    "data": ("source", "data"),
    "pretrain": ("seed", "model", "optimizer", "schedule", "stage"),
    "tune": ("seed", "tune"),
    "eval": ("seed", "eval"),
    "report": (),
}


def recipe_inputs(recipe: Recipe, step: str) -> Inputs:
    """What a step takes from the recipe: the part of its inputs that is known before any file is read."""
    values = sections(recipe, _TABLES[step])
    if "data" in values:  # as runs of before there were such keys have it; and whoever makes a corpus, it is the same
        unsaid = json.loads(Data().model_dump_json(exclude={"heldout_fraction"}))
        table = values["data"].items()
        values["data"] = {key: value for key, value in table if key != "executor" and unsaid.get(key, ...) != value}
    if "source" in values:  # so, too
        kept = {name: _without_none(source) for name, source in values["source"].items()}
        values["source"] = kept
    if step == "corpus":
        del values["data"]["heldout_fraction"]
        for name, source in values["source"].items():
            # each document is kept with its terms, or left out for lack of them
            source["license"] = recipe.source[name].license
            del source["max_bad_fraction"]  # decides whether there is a corpus, and nothing of what is in it
    elif "source" in values and recipe.makes_corpus:
        values["makes_corpus"] = True
    if step in ("pretrain", "tune"):
        values["train"] = _how_to_train(recipe)
    if step == "pretrain":
        values["eval"] = {"heldout_tokens": recipe.eval.heldout_tokens}
        if recipe.model.start_from is None:  # as runs of before there was such a key have it
            del values["model"]["start_from"]
    return without_rows(values)


def _without_none(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _how_to_train(recipe: Recipe) -> dict[str, Any]:
    """[train] without what may change while a run goes on."""
    return recipe.train.model_dump(exclude=set(MAY_CHANGE))
