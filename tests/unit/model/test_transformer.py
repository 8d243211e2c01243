"""The model's size and its fresh weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fox.model import ModelConfig, Transformer
from fox.plan import plan
from fox.recipe import load_recipe

FOX_1 = Path(__file__).parents[3] / "recipes" / "fox-1-1.6b.toml"


def test_fox_1_has_the_published_number_of_parameters() -> None:
    recipe = load_recipe(FOX_1).recipe
    with torch.device("meta"):
        model = Transformer(ModelConfig.from_recipe(recipe.model, recipe.tokenizer.vocab_size))
    assert model.num_parameters() == 1_665_271_808
    assert model.embed_tokens.weight.numel() == 524_288_000
    assert sum(parameter.numel() for parameter in model.layers.parameters()) == 1_140_981_760
    assert model.norm.weight.numel() == 2_048


def test_norms_of_queries_and_keys_come_with_the_recipes_word_for_them() -> None:
    recipe = load_recipe(FOX_1, ["model.qk_norm=true"]).recipe
    config = ModelConfig.from_recipe(recipe.model, recipe.tokenizer.vocab_size)
    with torch.device("meta"):
        model = Transformer(config)
    assert model.num_parameters() == 1_665_271_808 + 32 * 2 * 128 == plan(recipe).parameters.total
    assert config.to_hugging_face(1, 2, None)["architectures"] == ["Qwen3ForCausalLM"]


def test_fresh_weights_are_the_seed_alone(make_config: Callable[..., ModelConfig]) -> None:
    def fresh(seed: int) -> Transformer:
        model = Transformer(make_config(initializer_range=0.05))
        model.initialise(torch.Generator().manual_seed(seed))
        return model

    one, same, other = fresh(1), fresh(1), fresh(2)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, same.get_parameter(name))
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            assert not torch.equal(parameter, other.get_parameter(name))
            assert abs(parameter.std().item() / 0.05 - 1) < 0.1, name


def test_untied_models_have_a_matrix_more(make_config: Callable[..., ModelConfig]) -> None:
    tied, untied = (Transformer(make_config(tie_word_embeddings=tied)) for tied in (True, False))
    assert untied.num_parameters() - tied.num_parameters() == 400 * 32
    assert tied.output_weight_VD is tied.embed_tokens.weight
