"""Under which terms a run's model and its sources are, as far as its recipe states them.

A page states them for what it names itself. Who puts other documents in their place with `-o` has to state theirs: what the
page said of the old ones, or of a model made of them, is not taken for granted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fox.recipe.keys import KeyPath, dotted
from fox.recipe.load import OVERRIDE
from fox.report.run_files import RunFiles


def model_license(run: RunFiles) -> str:
    """The model's licence; empty where none is stated for a model of these sources."""
    sources = run.recipe.recipe.get("source")
    documents = [key for name in (sources if isinstance(sources, dict) else ()) for key in _documents(name)]
    return _stated(run, ("license",), [*documents, ("model", "start_from")])


def source_license(run: RunFiles, source: str) -> str:
    """A source's licence; empty where none is stated for these documents."""
    return _stated(run, ("source", source, "license"), [*_documents(source)])


def source_url(run: RunFiles, source: str) -> str:
    """Where a source's documents come from; empty where that is not stated of these."""
    return _stated(run, ("source", source, "url"), [*_documents(source)])


def recipe_as_stated(run: RunFiles) -> dict[str, Any]:
    """The run's recipe, with its terms and addresses only where they are stated for these documents."""
    recipe = dict(run.recipe.recipe)
    if "license" in recipe:
        recipe["license"] = model_license(run)
    sources = recipe.get("source")
    if isinstance(sources, dict):
        recipe["source"] = {name: _source_as_stated(run, name, source) for name, source in sources.items()}
    return recipe


def _source_as_stated(run: RunFiles, name: str, source: Any) -> Any:
    if not isinstance(source, dict):
        return source
    stated = {"license": source_license(run, name), "url": source_url(run, name)}
    return {key: stated.get(key, value) for key, value in source.items()}


def _documents(source: str) -> Iterator[KeyPath]:
    yield ("source", source, "path")
    yield ("source", source, "files")


def _stated(run: RunFiles, key: KeyPath, documents: list[KeyPath]) -> str:
    origins = {name: origin for name, _, origin in run.recipe.rows}
    replaced = any(origins.get(dotted(document)) == OVERRIDE for document in documents)
    if replaced and origins.get(dotted(key)) != OVERRIDE:
        return ""
    value: Any = run.recipe.recipe
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    return value.strip() if isinstance(value, str) else ""
