"""A corpus becomes token shards by as many processes as it was made by: a part for each of its files, put together in their order.

Each file's part depends on that file, the tokenizer and the recipe alone, so the shards are the same by however many they were made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fox.artifacts import WORK, write_json
from fox.data.corpus.blocks import Each
from fox.data.corpus.executor import Round, do_round
from fox.data.corpus.store import files_of_corpus, read_documents, read_ids
from fox.data.shards import (
    SPLITS,
    Count,
    SourceFacts,
    SourceWriter,
    batches,
    check_heldout,
    check_trainable,
    shard_path,
    with_reading,
)
from fox.formats.token_shards import join_shards
from fox.progress import Meter, meter
from fox.recipe import Recipe
from fox.recipe.schema import Executor
from fox.tokenizer import Tokenizer


def tokenize_corpus(
    recipe: Recipe, tokenizer: Path, corpus: Path, read: Mapping[str, dict[str, Any]], folder: Path, console: Console
) -> dict[str, SourceFacts]:
    """Write the shards of all sources into `folder`, or go on with it, and tell what went into them. `read` has what each source's
    reading found.

    Raises UserError where a source has nothing to train on, or where all of them together hold nothing out.
    """
    files = [(name, path) for name in recipe.source for path in files_of_corpus(corpus, name)]
    parts = folder / WORK / "parts"
    if not recipe.data.duplicates or recipe.data.duplicates.lines:  # lines that were cut may leave others alike
        _note_copies([path for _, path in files], parts)
    do = partial(_tokenize, recipe, tokenizer, files, parts)
    labels = [f"{name}: {path.name}" for name, path in files]
    sizes = [path.stat().st_size for _, path in files]
    with meter("data", sum(sizes), "bytes", console=console) as shown:
        work = Round("tokenize", [Each("tokenize", do)], labels, folder / WORK / "executor")
        do_round(recipe.data.executor or Executor(), work, partial(_show, shown, sizes))
    facts = {}
    for name in recipe.source:
        mine = [number for number, (of, _) in enumerate(files) if of == name]
        facts[name] = with_reading(_sum(parts, mine), read[name])
        dropped = read[name].get("funnel", {}).get("dropped", {})
        for step in ("exact duplicates", "near duplicates"):
            facts[name].duplicates += sum(of["documents"] for of in dropped.get(step, {}).values())
        check_trainable(recipe, name, facts[name])
        for split in SPLITS:
            join_shards(
                [shard_path(_part(parts, number), name, split) for number in mine], shard_path(folder, name, split)
            )
    check_heldout(recipe, facts.values())
    return facts


def _tokenize(recipe: Recipe, tokenizer: Path, files: Sequence[tuple[str, Path]], parts: Path, number: int) -> None:
    name, path = files[number]
    folder = _part(parts, number)
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    folder.mkdir(parents=True)
    copies = set(np.load(_copies_path(parts, number)).tolist()) if _copies_path(parts, number).exists() else set()
    writer = SourceWriter(folder, name, recipe, _tokenizer(tokenizer))
    for batch in batches(document for index, document in enumerate(read_documents(path)) if index not in copies):
        writer.write(batch)
    writer.close()
    writer.facts.duplicates = len(copies)
    write_json(folder / "facts.json", asdict(writer.facts))


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Tokenizer:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    return Tokenizer.load(folder)


def _note_copies(files: Sequence[Path], parts: Path) -> None:
    """For each file, the places of documents that an earlier one has, too: 16 bytes of memory for each document of the corpus."""
    ids = [read_ids(path) for path in files]
    whole = np.concatenate(ids)
    first = np.zeros(whole.size, dtype=np.bool_)
    first[np.unique(whole, return_index=True)[1]] = True
    parts.mkdir(parents=True, exist_ok=True)
    end = 0
    for number, of_file in enumerate(ids):
        begin, end = end, end + of_file.size
        if (copies := np.flatnonzero(~first[begin:end])).size:
            np.save(_copies_path(parts, number), copies, allow_pickle=False)


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:05}"


def _copies_path(parts: Path, number: int) -> Path:
    return parts / f"{number:05}.copies.npy"


def _sum(parts: Path, numbers: Sequence[int]) -> SourceFacts:
    whole = SourceFacts()
    for number in numbers:
        part = json.loads((_part(parts, number) / "facts.json").read_bytes())
        whole.duplicates += part["duplicates"]
        for split in SPLITS:
            count: Count = getattr(whole, split)
            count.add(part[split]["documents"], part[split]["tokens"], part[split]["bytes"])
    return whole


def _show(shown: Meter, sizes: Sequence[int], done: set[int]) -> None:
    shown.advance_to(sum(sizes[number] for number in done), f"{len(done)}/{len(sizes)} files")
