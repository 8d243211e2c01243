"""The decoder: embedding, blocks, final norm. Its parameters carry the names of Hugging Face's LlamaModel.

B rows, T new tokens, S all tokens so far, D hidden size, V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fox.kernels.attention import additive, causal_mask
from fox.kernels.native.attention import can_attend
from fox.model.attention import Attention, LayerCache, document_mask, places_in_segments
from fox.model.config import ModelConfig
from fox.model.narrow import Linear, embed, linear
from fox.model.norm import RMSNorm
from fox.model.rotary import rotary_turn


class Cache(Protocol):
    """What a model has seen: how many tokens, and each layer's keys and values."""

    num_tokens: int
    layers: Sequence[LayerCache]


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    """Attention and MLP, each after a norm and beside a residual path."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(
        self, x_BTD: Tensor, turn: tuple[Tensor, Tensor], mask_B1TS: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), turn, mask_B1TS, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Transformer(nn.Module):
    """A Llama-style decoder. `forward` gives the hidden states; `logits` or `fox.model.loss` turns them into words."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        """Keep only each block's input for the way back, and make the rest again then (Chen et al., arXiv 1604.06174)."""
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every matrix from a normal distribution of `initializer_range`, in the order of the parameters; norms are ones."""
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0.0, self.config.initializer_range, generator=generator)

    @property
    def output_weight_VD(self) -> Tensor:
        """The matrix that scores the vocabulary: the embedding itself where the two are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(self, tokens_BT: Tensor, segment_BT: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Hidden states (B, T, D) after the final norm.

        `segment_BT` numbers the documents packed in each row: a token sees only those of its own number, and positions
        start anew with each. `cache` holds what came before these tokens, and takes them up. Not both.
        """
        assert segment_BT is None or cache is None
        new_tokens = tokens_BT.shape[1]
        seen_tokens = cache.num_tokens if cache else 0
        place_BT = torch.arange(seen_tokens, seen_tokens + new_tokens, device=tokens_BT.device)[None]
        if segment_BT is not None:
            place_BT = places_in_segments(segment_BT)
        if cache is None and can_attend(tokens_BT.device, self._product_type(), self.config.head_dim):
            begins_BT = torch.arange(new_tokens) - place_BT
            mask_B1TS = begins_BT.int().expand(len(tokens_BT), -1).contiguous()
        elif segment_BT is not None:
            mask_B1TS = additive(document_mask(segment_BT), self._product_type())
        elif seen_tokens:
            mask_B1TS = causal_mask(new_tokens, seen_tokens + new_tokens, tokens_BT.device)
        else:
            mask_B1TS = None
        turn = rotary_turn(place_BT, self.config)
        x_BTD = embed(tokens_BT, self.embed_tokens.weight, self.norm.weight.dtype)
        for number, block in enumerate(self.layers):
            layer_cache = cache.layers[number] if cache else None
            if self.checkpointing and torch.is_grad_enabled():
                # No block draws random numbers, so there is no state of theirs to put back.
                x_BTD = checkpoint(
                    block, x_BTD, turn, mask_B1TS, layer_cache, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_BTD = block(x_BTD, turn, mask_B1TS, layer_cache)
        if cache:
            cache.num_tokens += new_tokens
        return self.norm(x_BTD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Scores of the whole vocabulary (B, T, V). For a few tokens; training uses `fox.model.loss`."""
        return linear(hidden_BTD, self.output_weight_VD)

    def _product_type(self) -> torch.dtype:
        """The type of matrix products: autocast's where it is on, else the weights'."""
        weight = self.norm.weight  # matrices may be kept narrower
        device = weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype

    def num_parameters(self) -> int:
        """Each counted once, a tied embedding too."""
        return sum(parameter.numel() for parameter in self.parameters())
