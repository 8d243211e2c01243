"""A recipe that starts from a model takes its shape, says where each value came from, and refuses to contradict it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fox.errors import RecipeError, UserError
from fox.recipe import load_recipe
from fox.recipe.start import Shape
from tests.unit.recipe.test_load_recipe import PAGE

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "rope_theta": 500_000.0,
}


def shape_of(name: str) -> Shape:
    if name != "theirs.gguf":
        raise UserError("MODEL", name, problem="there is no such file or folder", mend="Name a model.")
    return Shape(SHAPE, 301)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    whole = (
        PAGE.split("[tokenizer]")[0]
        + '[model]\nstart_from = "theirs.gguf"\n\n[optimizer]'
        + PAGE.split("[optimizer]")[1]
    )
    (tmp_path / "page.toml").write_text(whole, encoding="utf-8")
    return tmp_path / "page.toml"


def problems(page: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(page, overrides, shape_of)
    return [str(problem) for problem in caught.value.problems]


def test_shape_and_vocabulary_come_from_the_model(page: Path) -> None:
    loaded = load_recipe(page, [], shape_of)
    assert {key: getattr(loaded.recipe.model, key) for key in SHAPE} == SHAPE
    assert loaded.recipe.tokenizer.vocab_size == 301
    origins = {key: origin for key, _, origin in loaded.rows()}
    assert {origins[key] for key in ("model.rope_theta", "tokenizer.vocab_size")} == {"model.start_from"}
    assert origins["model.start_from"] == f"{page}:11"


def test_values_that_are_the_models_own_may_be_said(page: Path) -> None:
    assert load_recipe(page, ["model.hidden_size=64", "tokenizer.vocab_size=301"], shape_of).recipe.model.head_dim == 32


def test_each_contradiction_is_told_with_all_other_problems(page: Path) -> None:
    told = problems(page, "model.hidden_size=128", "tokenizer.path=mine", "tokenizer.vocab_size=400", "seed=x")
    assert sorted(problem.split(" = ")[0] for problem in told) == [
        "-o  model.hidden_size",
        "-o  seed",
        "-o  tokenizer.path",
        "-o  tokenizer.vocab_size",
    ]


def test_a_model_that_is_not_there_is_the_only_thing_missing(page: Path) -> None:
    (told,) = problems(page, "model.start_from=nowhere")
    assert told == "-o  model.start_from = 'nowhere': there is no such file or folder. Name a model."


def test_chunks_longer_than_the_model_reads_are_refused_without_a_way_out_that_is_none(page: Path) -> None:
    told = "\n".join(problems(page, "stage.only.chunk_length=128", "tune.chunk_length=32"))
    assert "the model that it starts from reads no more" in told
    assert "-o model.max_position_embeddings" not in told
