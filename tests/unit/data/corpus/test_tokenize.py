"""A corpus is tokenized in parts by many processes into the same shards as by one, from first to last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fox.artifacts import sha256_of
from fox.data.corpus.store import CorpusWriter
from fox.data.corpus.tokenize import tokenize_corpus
from fox.data.document import Document
from fox.data.readers import CorpusReader
from fox.data.shards import write_shards
from fox.errors import UserError
from fox.formats.token_shards import ShardWriter, join_shards
from fox.progress import Meter
from fox.recipe import Recipe
from fox.tokenizer import Tokenizer
from tests.unit.data.test_shards import recipe_of

QUIET = Console(quiet=True)
READ: dict[str, dict[str, Any]] = {
    name: {"reading": {"bad": {}}, "contaminated": {"documents": {}}} for name in ("own", "talk")
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for task, numbers in enumerate((range(90), range(60, 130), range(5), range(200, 201))):
        with CorpusWriter(folder / f"own/{task:05}.parquet", "own", is_chat=False) as writer:
            for number in numbers:
                writer.write(Document("own", f"{task}:{number}", text=f"The fox no. {number} ran over the dog.\n"))
    with CorpusWriter(folder / "talk/00004.parquet", "talk", is_chat=True) as writer:
        for number in range(40):
            said = [{"role": role, "content": f"Fox {number}?"} for role in ("user", "assistant")]
            writer.write(Document("talk", f"{number}", messages=tuple(said)))
    return folder


def recipe(workers: int, fraction: float = 0.2) -> Recipe:
    plain = recipe_of(fraction, own="nowhere", talk="nowhere")
    executor = {"executor": {"workers": workers}}
    return Recipe.model_validate({**plain.model_dump(), "data": {**plain.data.model_dump(), **executor}})


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.is_file()}


def test_parts_make_the_shards_that_one_reader_makes(corpus: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    tiny_tokenizer.save(tmp_path / "tokenizer")
    plain = tmp_path / "plain"
    plain.mkdir()
    twin = write_shards(recipe(1), tiny_tokenizer, CorpusReader(corpus, READ), plain, Meter("data", None, "bytes"))
    for workers in (1, 2):
        folder = tmp_path / f"by-{workers}"
        facts = tokenize_corpus(recipe(workers), tmp_path / "tokenizer", corpus, READ, folder, QUIET)
        assert hashes(folder) == hashes(plain) and len(hashes(plain)) == 14
        assert {name: of.as_dict() for name, of in facts.items()} == {name: of.as_dict() for name, of in twin.items()}
    assert facts["own"].duplicates == 35


def test_a_corpus_without_a_document_to_hold_out_is_told(
    corpus: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    tiny_tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="holds out no document at all"):
        tokenize_corpus(recipe(1, 1e-9), tmp_path / "tokenizer", corpus, READ, tmp_path / "data", QUIET)


def test_shards_are_joined_in_order_and_missing_and_empty_parts_are_nothing(tmp_path: Path) -> None:
    import numpy as np

    whole, parts = ShardWriter(tmp_path / "whole.ds", 100, False), []
    for number, lengths in enumerate(((3, 1), (), (4,))):
        parts.append(tmp_path / f"{number}.ds")
        writer = ShardWriter(parts[-1], 100, False)
        for length in lengths:
            for one in (writer, whole):
                one.write(np.arange(length))
        writer.close()
    whole.close()
    join_shards([parts[0], tmp_path / "none.ds", *parts[1:]], tmp_path / "joined.ds")
    for ending in ("", ".index"):
        joined, made = (tmp_path / f"{name}.ds{ending}" for name in ("joined", "whole"))
        assert joined.read_bytes() == made.read_bytes()
