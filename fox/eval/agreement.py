"""How far two models agree on the same tokens: the measure of every conversion and quantisation.

B rows, T tokens, N tokens in any shape, V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fox.engine.streamed import hidden_states, logits
from fox.errors import Failure
from fox.model.stored import StoredModel

_LOGITS_BYTES = 128 << 20  # a model's scores at a time: its head is read anew for each such part
_EXACT_ROWS = 8  # of which so many are made float64 at a time


@dataclass(frozen=True)
class Agreement:
    """What two models, a and b, say after each of `tokens` tokens, each in the context of its row.

    kl_N        Kullback-Leibler divergence of b's prediction from a's, in nats
    same_top_N  whether both find the same token likeliest
    margin_N    by how many nats a prefers its own likeliest token to b's: 0 where they are the same
    nats_a, nats_b  what each needs for the token that comes next in the text, on average, over `predicted` tokens
    """

    kl_N: Tensor
    same_top_N: Tensor
    margin_N: Tensor
    nats_a: float
    nats_b: float
    predicted: int

    @property
    def tokens(self) -> int:
        return len(self.kl_N)

    def as_dict(self) -> dict[str, float | int]:
        """The figures in short, for people and programs."""
        return {
            "tokens": self.tokens,
            "same_top_token": self.same_top_N.double().mean().item(),
            "mean_kl_nats": self.kl_N.mean().item(),
            "p99_kl_nats": self.kl_N.quantile(0.99).item(),
            "max_kl_nats": self.kl_N.max().item(),
            "perplexity_a": _exp(self.nats_a),
            "perplexity_b": _exp(self.nats_b),
            "perplexity_change": _exp(self.nats_b - self.nats_a) - 1,
        }


@torch.inference_mode()
def agreement(
    a: StoredModel, b: StoredModel, tokens_BT: Tensor, counted_BT: Tensor, after_part: Callable[[], None]
) -> Agreement:
    """Let both read the rows, and compare what they predict after each token that is counted.

    `after_part` is called once a block of either model (`num_parts` in all).
    """
    hidden_a, hidden_b = (hidden_states(model, tokens_BT, after_part) for model in (a, b))
    next_BT = tokens_BT.roll(-1, dims=1)
    has_next_BT = counted_BT & counted_BT.roll(-1, dims=1)
    has_next_BT[:, -1] = False
    return compare_predictions(
        a, b, hidden_a[counted_BT], hidden_b[counted_BT], next_BT[counted_BT], has_next_BT[counted_BT]
    )


def num_parts(a: StoredModel, b: StoredModel) -> int:
    """How often `agreement` calls back."""
    return a.config.num_hidden_layers + b.config.num_hidden_layers


@torch.inference_mode()
def compare_predictions(
    a: StoredModel, b: StoredModel, hidden_a_ND: Tensor, hidden_b_ND: Tensor, next_N: Tensor, has_next_N: Tensor
) -> Agreement:
    """The agreement of two models' predictions, given their hidden states. Raises Failure where one of them predicts no numbers."""
    size = min(a.config.vocab_size, b.config.vocab_size)  # one may have rows that no token uses
    step = max(1, _LOGITS_BYTES // (4 * size))
    parts = []
    for start in range(0, len(next_N), step):
        part = slice(start, start + step)
        scores = (logits(a, hidden_a_ND[part]), logits(b, hidden_b_ND[part]))
        for model, scores_NV in zip((a, b), scores, strict=True):
            if not scores_NV.isfinite().all():
                raise Failure(
                    f"{model.path}: predicts {'NaN' if scores_NV.isnan().any() else 'infinity'}, so there is nothing to compare. "
                    "Its weights are damaged: copy or make it again."
                )
        exact = zip(*(x.split(_EXACT_ROWS) for x in (*scores, next_N[part])), strict=True)
        parts += [_compared(size, *rows) for rows in exact]
    kl_N, same_top_N, margin_N, nats_a_N, nats_b_N = (torch.cat(x) for x in zip(*parts, strict=True))
    return Agreement(
        kl_N=kl_N,
        same_top_N=same_top_N,
        margin_N=margin_N,
        nats_a=nats_a_N[has_next_N].mean().item(),
        nats_b=nats_b_N[has_next_N].mean().item(),
        predicted=int(has_next_N.sum()),
    )


def _compared(size: int, scores_a_NV: Tensor, scores_b_NV: Tensor, next_N: Tensor) -> tuple[Tensor, ...]:
    """Divergence over the first `size` entries, which both have; what the next token needs over each model's own vocabulary."""
    own = [scores_NV.double().log_softmax(-1) for scores_NV in (scores_a_NV, scores_b_NV)]
    log_a_NV, log_b_NV = (log_NV[:, :size].log_softmax(-1) for log_NV in own)
    kl_N = (log_a_NV.exp() * (log_a_NV - log_b_NV)).sum(-1).clamp(min=0)
    top_a_N1, top_b_N1, next_N1 = log_a_NV.argmax(-1, True), log_b_NV.argmax(-1, True), next_N[:, None]
    margin_N1 = log_a_NV.gather(1, top_a_N1) - log_a_NV.gather(1, top_b_N1)
    nats = (-log_NV.gather(1, next_N1)[:, 0] for log_NV in own)
    return kl_N, (top_a_N1 == top_b_N1)[:, 0], margin_N1[:, 0], *nats


def _exp(nats: float) -> float:
    """e to that power, or to the 700th where a model is wrong and surer of it than float64 can say."""
    return math.exp(min(nats, 700.0))
