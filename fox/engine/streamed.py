"""Run a stored model a block at a time, so that a model larger than memory can be checked and compared.

Every weight is read once for all the tokens, made float32, used and forgotten.

B rows, T new tokens, S all tokens so far, D hidden size, N tokens in any shape, V vocabulary, C rows of the head at a time
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fox.engine.kv_cache import KVCache
from fox.kernels.attention import causal_mask
from fox.model.norm import RMSNorm
from fox.model.rotary import rotary_turn
from fox.model.stored import EMBEDDING, HEAD, StoredModel
from fox.model.transformer import Block

_PASS_TOKENS = 4096


@torch.inference_mode()
def hidden_states(
    stored: StoredModel, tokens_BT: Tensor, after_block: Callable[[], None], cache: KVCache | None = None
) -> Tensor:
    """What the model makes of each row (B, T, D), after its final norm, in float32. `after_block` is called after each.

    `cache`, of B rows, holds what came before these tokens, and takes them up.
    """
    config, new_tokens = stored.config, tokens_BT.shape[1]
    seen_tokens = cache.num_tokens if cache else 0
    turn = rotary_turn(torch.arange(seen_tokens, seen_tokens + new_tokens)[None], config)
    mask_11TS = causal_mask(new_tokens, seen_tokens + new_tokens, tokens_BT.device) if seen_tokens else None
    x_BTD = _embedded(stored, tokens_BT)
    rows = len(x_BTD) if cache else max(1, _PASS_TOKENS // new_tokens)
    with torch.device("meta"):
        block, norm = Block(config).eval(), RMSNorm(config.hidden_size, config.rms_norm_eps)
    block.to_empty(device="cpu")  # one for all: the next block's weights take the place of the last one's
    for number in range(config.num_hidden_layers):
        for name, weight in block.state_dict().items():
            stored.read_into(weight, f"model.layers.{number}.{name}")
        for start in range(0, len(x_BTD), rows):
            part = slice(start, start + rows)
            x_BTD[part] = block(x_BTD[part], turn, mask_11TS, cache.layers[number] if cache else None)
        after_block()
    if cache:
        cache.num_tokens += new_tokens
    stored.read_into(norm.to_empty(device="cpu").weight, "model.norm.weight")
    return norm(x_BTD)


@torch.inference_mode()
def logits(stored: StoredModel, hidden_ND: Tensor) -> Tensor:
    """Scores of the whole vocabulary (N, V). The caller keeps N small enough for that."""
    scores_NV = hidden_ND.new_empty((len(hidden_ND), stored.config.vocab_size))
    start = 0
    for weight_CD in stored.chunks(EMBEDDING if stored.config.tie_word_embeddings else HEAD):
        end = start + len(weight_CD)
        scores_NV[:, start:end] = hidden_ND @ weight_CD.float().T
        start = end
    return scores_NV


def _embedded(stored: StoredModel, tokens_BT: Tensor) -> Tensor:
    """The embedding rows of some tokens, of which no other row is read."""
    ids, place_BT = tokens_BT.unique(return_inverse=True)
    rows = [stored.weights.read_rows(EMBEDDING, token, token + 1)[0].float() for token in ids.tolist()]
    return torch.stack(rows)[place_BT]
