"""The recipe that `fox plan --budget` scales where none is given: Fox-1's proportions in small, one stage, AdamW."""

from __future__ import annotations

from fox.recipe.schema import Recipe


def starter_recipe() -> Recipe:
    """Text from the folder `text`; 16 layers of 384 (arXiv 2411.05281 has 32 of 2,048), chunks of 512, a quarter of the tokens in the decay."""
    return Recipe.model_validate(
        {
            "name": "budget",
            "seed": 1,
            "source": {"text-files": {"path": "text"}},
            "tokenizer": {"vocab_size": 8192},
            "model": {
                "hidden_size": 384,
                "intermediate_size": 768,
                "num_hidden_layers": 16,
                "num_attention_heads": 6,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "max_position_embeddings": 512,
            },
            "optimizer": {"peak_learning_rate": 1e-3},
            "schedule": {"warmup_tokens": 400_000, "decay_tokens": 5_000_000},
            "stage": {
                "all": {
                    "tokens": 20_000_000,
                    "chunk_length": 512,
                    "rows": 8,
                    "batch_tokens": 8192,
                    "mix": {"text": 1.0},
                }
            },
        }
    )
