"""How many parameters a recipe's model has, and how much work one token makes."""

from __future__ import annotations

from dataclasses import dataclass

from fox.recipe.schema import Model
from fox.recipe.stage import Stage


@dataclass(frozen=True)
class Parameters:
    """Learnt numbers, by where they are. `head` is 0 where the output shares the embedding's matrix."""

    embedding: int
    one_block: int
    blocks: int
    final_norm: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.final_norm + self.head

    @property
    def without_lookup(self) -> int:
        """All that every token is multiplied with: reading a row of the embedding is no product.

        So an embedding of its own is left out, and a tied one is counted once, as the head. The norms, a
        ten-thousandth, are counted as the literature does.
        """
        return self.blocks + self.final_norm + (self.head or self.embedding)

    @property
    def without_embedding_and_head(self) -> int:
        """The N of Kaplan et al. (arXiv 2001.08361): without the head's product, which is large in small models."""
        return self.blocks + self.final_norm


def head_dim(model: Model) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def count_parameters(model: Model, vocab_size: int) -> Parameters:
    """Exactly what `LlamaForCausalLM` (with qk_norm `Qwen3ForCausalLM`) of this shape holds, without biases."""
    hidden = model.hidden_size
    queries = model.num_attention_heads * head_dim(model)
    keys = model.num_key_value_heads * head_dim(model)
    attention = hidden * queries + 2 * hidden * keys + queries * hidden
    mlp = 3 * hidden * model.intermediate_size  # gate, up, down
    block = attention + mlp + 2 * hidden  # a norm before each
    if model.qk_norm:
        block += 2 * head_dim(model)
    return Parameters(
        embedding=vocab_size * hidden,
        one_block=block,
        blocks=model.num_hidden_layers * block,
        final_norm=hidden,
        head=0 if model.tie_word_embeddings else vocab_size * hidden,
    )


def matrix_flops(parameters: int) -> int:
    """FLOPs of one token's matrix products, forward and backward: 6 N (Kaplan et al., arXiv 2001.08361, section 2.1).

    A multiplication and an addition a parameter forward; twice that backward, for the gradients of both.
    """
    return 6 * parameters


def attention_flops_per_position(model: Model) -> int:
    """FLOPs of one token's attention for each position that it is compared with, forward and backward: 12 L H Q.

    PaLM's appendix B (arXiv 2204.02311): L layers, H heads of size Q; scores and weighted sum, 2 FLOPs each, times 3
    for forward and backward. With chunks of T tokens it counts all T, as reported MFU figures do; under a causal mask a
    token sees T / 2 on average, so half of it is needed.
    """
    return 12 * model.num_hidden_layers * model.num_attention_heads * head_dim(model)


def mean_chunk_length(stage: Stage) -> float:
    """Tokens that see each other, averaged over a stage's mix. Documents shorter than a chunk make it less."""
    total = sum(stage.mix.values())
    of_key = {key: sum(length * share for length, share in stage.lengths_of(key).items()) for key in stage.mix}
    return sum(weight * of_key[key] for key, weight in stage.mix.items()) / total


def kv_cache_bytes_per_token(model: Model, element_bytes: int = 2) -> int:
    """A key and a value for each layer and kv head; bfloat16 unless told otherwise."""
    return 2 * model.num_hidden_layers * model.num_key_value_heads * head_dim(model) * element_bytes
