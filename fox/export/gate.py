"""The gate: a written model is read back and held against its source before it counts as done.

Its tokenizer must give the same ids on texts that are known to be hard, and its weights the same predictions, within what
its type's rounding does. Both models are read from the disk as their users would read them.

B rows, T tokens
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fox.engine.streamed import hidden_states, logits
from fox.errors import Failure, UserError
from fox.eval.agreement import Agreement, agreement
from fox.model.stored import StoredModel
from fox.tokenizer import Tokenizer
from fox.tokenizer.hard_texts import hard_texts_for
from fox.tokenizer.llama_cpp import ends_of_reply


@dataclass(frozen=True)
class Bound:
    """How far a file of some type may be from its source.

    mean_kl     the mean divergence of its predictions, in nats
    margin      how sure of its own likeliest token the source may have been where the two first part, in nats
    """

    mean_kl: float
    margin: float


# Of SmolLM2-135M, whose weights had been rounded to Q4_1 before, which makes it worse than any model will be that has not:
# mean divergence f16 2e-6, bf16 6e-5, q8_0 0.0014, q5_0 0.10, q5_1 0.14, q4_k_m 0.06, q4_0 0.42. The bounds are three times
# that and more: they stop what is wrong, and `fox compare` tells how good the rest is.
BOUNDS = {
    "f32": Bound(1e-9, 0.0),  # exact, but for sums in another order: the same greedy tokens
    "f16": Bound(1e-4, 0.05),
    "bf16": Bound(2e-3, 0.25),
    "q8_0": Bound(0.03, 0.5),
    "q5_1": Bound(0.5, 5.0),
    "q5_0": Bound(0.5, 5.0),
    "q4_k_m": Bound(0.5, 5.0),
    "q4_1": Bound(1.5, 8.0),
    "q4_0": Bound(1.5, 8.0),
}

# The root mean square of a tensor's error over that of its weights. Of normally distributed weights it is F16 0.0002, BF16
# 0.0017, Q8_0 0.005, Q6_K 0.018, Q5_1 0.038, Q5_0 0.043, Q4_K 0.071, Q4_1 0.078, Q4_0 0.086; a tensor in the wrong place, or in
# the wrong order, has 1.4. Half a unit in the last place bounds the first two; outliers make blocks worse, by less than this.
WORST_ERROR = {
    "F32": 0.0, "F16": 2**-11, "BF16": 2**-9, "Q8_0": 0.05, "Q6_K": 0.1, "Q5_1": 0.2, "Q5_0": 0.2, "Q4_K": 0.4, "Q4_1": 0.4,
    "Q4_0": 0.4,
}  # fmt: skip

PROMPTS = (
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is Rome, and the capital of Japan is",
    "def mean(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n        total += value\n    return total /",
    "Once upon a time there was a fox who lived at the edge of a forest. Every evening, when the sun went down, the fox would",
    "Water boils at 100 degrees Celsius and freezes at 0. Ice floats, because it is less dense than the water below. Therefore",
)
_PROMPT_TOKENS = 24
_GREEDY_TOKENS = 8


def check_tokenizer(source: Tokenizer, written: Tokenizer) -> int:
    """Compare ids, and the bytes they stand for, on the hard texts; how many there were. Raises Failure at a difference."""
    texts = hard_texts_for(source)
    for text in texts:
        wanted, made = _ids(source, text), _ids(written, text)
        if made != wanted:
            raise Failure(f"the written tokenizer makes {made} of {text!r}, and its source {wanted}")
        if made and wanted and written.decode_bytes(made) != source.decode_bytes(wanted):
            raise Failure(f"the written tokenizer reads {made} as {written.decode_bytes(made)!r}")
    for name in ("bos_id", "eos_id", "pad_id", "adds_bos", "adds_eos"):
        if getattr(source, name) != getattr(written, name):
            raise Failure(
                f"the written tokenizer has {name} = {getattr(written, name)}, its source {getattr(source, name)}"
            )
    # llama.cpp also ends a reply at whatever token reads like an end, whether its file says so or not.
    more = written.stop_ids - source.stop_ids - {source.special_ids[name] for name in ends_of_reply(source.special_ids)}
    if more or not source.stop_ids <= written.stop_ids:
        raise Failure(
            f"replies of the written model end at {sorted(written.stop_ids)}, of its source at {sorted(source.stop_ids)}"
        )
    if source.config.get("chat_template") != written.config.get("chat_template"):
        raise Failure("the written tokenizer has another chat template than its source")
    return len(texts)


def _ids(tokenizer: Tokenizer, text: bytes) -> list[int] | None:
    """The ids of a text, None where it has bytes for which there is no token: SmolLM2's vocabulary, for one, lacks some."""
    try:
        return tokenizer.encode(text)
    except UserError:
        return None


def check_tensors(source: StoredModel, written: StoredModel, checked: Callable[[int], None]) -> None:
    """Compare every weight. Raises Failure where a tensor is further from its source than its type's rounding takes it.

    `checked` is called with the number of weights of each part.
    """
    for name in source.names:
        error, size = 0.0, 0.0
        for wanted_RC, made_RC in zip(source.chunks(name), written.chunks(name), strict=True):
            wanted_RC, made_RC = wanted_RC.float(), made_RC.float()
            error += (made_RC - wanted_RC).square().sum(dtype=torch.float64).item()
            size += wanted_RC.square().sum(dtype=torch.float64).item()
            checked(wanted_RC.numel())
        kind = written.weights.stored_types[name]
        if not error <= size * WORST_ERROR[kind] ** 2:
            raise Failure(
                f"{name} is not as it was: an error of {(error / size) ** 0.5 if size else error:.2g} of its size, "
                f"and {kind} may have {WORST_ERROR[kind]:.2g}"
            )


def check_predictions(
    source: StoredModel, written: StoredModel, file_type: str, after_part: Callable[[], None]
) -> Agreement:
    """Compare predictions along the source's own greedy path from the prompts. Raises Failure where they differ by too much."""
    path_BT = greedy_path(source, _prompts(source.tokenizer, source.config.max_position_embeddings), after_part)
    made = agreement(source, written, path_BT, torch.ones_like(path_BT, dtype=torch.bool), after_part)
    bound = BOUNDS[file_type]
    mean_kl = made.kl_N.mean().item()
    if not mean_kl <= bound.mean_kl:  # so that NaN fails, too
        raise Failure(
            f"the written weights predict otherwise than their source: a mean divergence of {mean_kl:.2g} nats, "
            f"and {file_type} may have {bound.mean_kl:.2g}"
        )
    margin = first_divergence(made, len(path_BT))
    if not margin <= bound.margin:
        raise Failure(
            f"the written weights choose another token where their source was sure of its own by {margin:.2g} nats, "
            f"and {file_type} may differ up to {bound.margin:.2g}"
        )
    return made


def greedy_path(source: StoredModel, prompt_BT: Tensor, after_part: Callable[[], None]) -> Tensor:
    """The prompts and what the source itself says next, always its likeliest token."""
    path_BT = prompt_BT
    for _ in range(_GREEDY_TOKENS):
        last_BD = hidden_states(source, path_BT, after_part)[:, -1]
        path_BT = torch.cat([path_BT, logits(source, last_BD).argmax(-1, keepdim=True)], dim=1)
    return path_BT


def first_divergence(made: Agreement, rows: int) -> float:
    """How sure the source was, in nats, where a continuation first becomes another; the surest of them, 0 where none does."""
    differs_BT = ~made.same_top_N.view(rows, -1)[:, -_GREEDY_TOKENS - 1 :]
    margin_BT = made.margin_N.view(rows, -1)[:, -_GREEDY_TOKENS - 1 :]
    first_B1 = differs_BT.int().argmax(1, keepdim=True)  # the first of the ones; where there are none, the first place
    return margin_BT.gather(1, first_B1).max().item()


def num_parts(source: StoredModel) -> int:
    """How often `check_predictions` calls back."""
    return (_GREEDY_TOKENS + 2) * source.config.num_hidden_layers


def _prompts(tokenizer: Tokenizer, context: int) -> Tensor:
    start = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    rows = [start + tokenizer.encode(prompt) for prompt in PROMPTS]
    length = max(1, min(_PROMPT_TOKENS, context - _GREEDY_TOKENS, *map(len, rows)))
    return torch.tensor([row[:length] for row in rows])
