"""Run a stored model a block at a time, so that a model larger than memory can be checked and compared.

Every weight is read once for all the tokens, made float32, used and forgotten.

B rows, T tokens, D hidden size, N tokens in any shape, V vocabulary, C rows of the head at a time
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fox.model.norm import RMSNorm
from fox.model.rotary import rotary_turn
from fox.model.stored import EMBEDDING, HEAD, StoredModel
from fox.model.transformer import Block

_PASS_TOKENS = 4096


@torch.inference_mode()
def hidden_states(stored: StoredModel, tokens_BT: Tensor, after_block: Callable[[], None]) -> Tensor:
    """What the model makes of each row (B, T, D), after its final norm, in float32. `after_block` is called after each."""
    config = stored.config
    turn = rotary_turn(torch.arange(tokens_BT.shape[1])[None], config)
    x_BTD = _embedded(stored, tokens_BT)
    rows = max(1, _PASS_TOKENS // tokens_BT.shape[1])
    for number in range(config.num_hidden_layers):
        _pass_block(stored, number, x_BTD, turn, rows)
        after_block()
    with torch.device("meta"):
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.load_state_dict({"weight": stored.tensor("model.norm.weight", torch.float32)}, assign=True)
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


def _pass_block(stored: StoredModel, number: int, x_BTD: Tensor, turn: tuple[Tensor, Tensor], rows: int) -> None:
    """Pass all through one block, in place. Its weights are gone when this ends, before the next block's are read."""
    with torch.device("meta"):
        block = Block(stored.config).eval()
    weights = {name: stored.tensor(f"model.layers.{number}.{name}", torch.float32) for name in block.state_dict()}
    block.load_state_dict(weights, assign=True)
    for start in range(0, len(x_BTD), rows):
        x_BTD[start : start + rows] = block(x_BTD[start : start + rows], turn, None, None)


def _embedded(stored: StoredModel, tokens_BT: Tensor) -> Tensor:
    """The embedding rows of some tokens, of which no other row is read."""
    ids, place_BT = tokens_BT.unique(return_inverse=True)
    rows = [stored.weights.read_rows(EMBEDDING, token, token + 1)[0].float() for token in ids.tolist()]
    return torch.stack(rows)[place_BT]
