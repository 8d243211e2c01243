"""The gate: a written model is read back and held against its source before it counts as done.

Its tokenizer must give the same ids on texts that are known to be hard, and its weights the same predictions, within what
its type's rounding does. Both models are read from the disk as their users would read them.

B rows of T tokens; R rows of C weights, P rows of them at a time
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime

import torch
from torch import Tensor

from fox.engine.kv_cache import KVCache
from fox.engine.streamed import hidden_states, logits
from fox.errors import Failure, UserError
from fox.eval.agreement import Agreement, agreement
from fox.model.config import ModelConfig
from fox.model.rotary import frequencies, slowdown
from fox.model.stored import StoredModel
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chat
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

# What rounding to the nearest may do to a weight, relative to its size: half a unit in the last place.
HALF_UNIT = {"F32": 0.0, "F16": 2**-11, "BF16": 2**-8}

# Into how many steps these types cut a block's largest weight by size, or (those of _1) what lies between its least weight and
# its greatest. A weight is put on the nearest, so it moves by half a step.
STEPS = {"Q8_0": 127, "Q5_0": 16, "Q4_0": 8, "Q5_1": 31, "Q4_1": 15}

# Of the others, which search for the best scales: the root mean square of a block's error over that of its weights. Of
# normally distributed weights it is Q6_K 0.018 and Q4_K 0.071, and outliers make it worse, by less than this; zeros in the
# place of weights have 1, a row in the wrong place has 1.4. Each block counts for itself: in a whole tensor, some wrong rows don't show.
WORST_ERROR = {"Q6_K": 0.1, "Q4_K": 0.4}

# The greatest integer that their blocks multiply a float16 scale by. Half of the least float16 is what rounding the scale to it
# may do at most, so a block of weights below some 1e-4 becomes zeros.
GREATEST_MULTIPLE = {"Q6_K": 128 * 32, "Q4_K": 63 * (15 + 1)}

PROMPTS = (
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is Rome, and the capital of Japan is",
    "def mean(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n        total += value\n    return total /",
    "Once upon a time there was a fox who lived at the edge of a forest. Every evening, when the sun went down, the fox would",
    "Water boils at 100 degrees Celsius and freezes at 0. Ice floats, because it is less dense than the water below. Therefore",
)
_LEAST_HALF = {"F16": 2**-25, "BF16": 2**-134}  # half of the least number above 0
_FLOAT32 = 1e-6  # more than a float32 is off, relatively
_SCALED = 2e-4  # what the reader of GGUF files lets pass as Llama 3's scaling, twice
_CACHED_WEIGHTS = 1 << 18  # so many are compared at a time, which stay in a core's cache
_LOOK_ALIKES = 16  # special tokens that a chat's text is made to read like; some tokenizers have thousands
_NOW = datetime(2026, 1, 1)  # for templates that tell the time, which must not pass from one rendering to the other
_PROMPT_TOKENS = 24
_GREEDY_TOKENS = 8


def check_tokenizer(source: Tokenizer, written: Tokenizer) -> int:
    """Compare ids, and the bytes they stand for, on the hard texts (how many there were). Raises Failure at a difference."""
    # llama.cpp ends a reply at whatever token reads like an end, whether its file says so or not, and makes no such token of
    # text (Qwen's <|fim_pad|> is one): such texts can't be compared, nor need they.
    special = written.special_ids.keys() - source.special_ids.keys()
    by_name = ends_of_reply(special)
    texts = [text for text in hard_texts_for(source) if not any(name.encode() in text for name in by_name)]
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
    lost = sorted(name for name, token_id in source.special_ids.items() if written.special_ids.get(name) != token_id)
    new = sorted(special - by_name - {getattr(source.backend.model, "unk_token", None)})
    if lost or new:
        raise Failure(
            f"{(lost or new)[0]!r} is {'no' if lost else 'a'} special token of the written tokenizer, and "
            f"{'one' if lost else 'none'} of its source"
        )
    more = (
        written.stop_ids - source.stop_ids - {written.special_ids[name] for name in ends_of_reply(written.special_ids)}
    )
    if more or not source.stop_ids <= written.stop_ids:
        raise Failure(
            f"replies of the written model end at {sorted(written.stop_ids)}, of its source at {sorted(source.stop_ids)}"
        )
    if _templates(source) != _templates(written):
        raise Failure("the written tokenizer has another chat template than its source")
    return len(texts)


def check_chats(source: Tokenizer, written: Tokenizer) -> str:
    """Compare whole conversations: what stands between special tokens is encoded in its own way, which no text alone shows.

    Tells what is wrong with a template that makes nothing of any of them, so that nothing could be compared; it is no fault of
    what was written. Raises Failure at a difference.
    """
    if not _templates(source):
        return ""
    look_alikes = "".join(f" {name}{name[:-1]}\n" for name in sorted(source.special_ids)[:_LOOK_ALIKES])
    said = ("  Hello, fox! \n", "\n\n It ran: «naïve café», 日本語 🦊\t", f"{look_alikes} \t\n")
    refusals: list[str] = []
    chats = (
        (("system", "user"), ("Be brief.", "What is 12 + 345?"), True),
        (("user", "assistant", "user"), ("Hello", "Hi, you fox.", "And now?"), True),
        (("user", "assistant", "user", "assistant"), (*said, said[2]), False),
    )
    for roles, contents, asks in chats:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        (wanted, refusal), (made, _) = (_chat_ids(tokenizer, messages, asks) for tokenizer in (source, written))
        if made != wanted:
            raise Failure(f"the written tokenizer makes {made} of the chat {messages}, and its source {wanted}")
        refusals.append(refusal)
    return refusals[0] if all(refusals) else ""


def _chat_ids(
    tokenizer: Tokenizer, messages: list[dict[str, str]], asks: bool
) -> tuple[tuple[list[int], list[bool]] | None, str]:
    """The ids of a chat and which are learnt. None, and why, where its template refuses it: many take no system's message."""
    try:
        chat = encode_chat(tokenizer, messages, asks, _NOW)
    except UserError as error:
        return None, error.problems[0].problem
    return (chat.ids.tolist(), chat.is_learnt.tolist()), "" if len(chat.ids) else "makes nothing of these messages"


def _ids(tokenizer: Tokenizer, text: bytes) -> list[int] | None:
    """The ids of a text, None where it has bytes for which there is no token: SmolLM2's vocabulary, for one, lacks some."""
    try:
        return tokenizer.encode(text)
    except UserError:
        return None


def _templates(tokenizer: Tokenizer) -> object:
    """The chat templates by name: one may stand alone, or in a list in which it is named default."""
    template = tokenizer.config.get("chat_template")
    if isinstance(template, list):
        return {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    return {} if template is None else {"default": template}


def check_config(source: ModelConfig, written: ModelConfig) -> None:
    """Compare shapes and constants, which predictions alone may not show. Raises Failure at a difference.

    GGUF keeps float32, knows nothing of `initializer_range`, and says of Llama 3's scaling only what comes of it.
    """
    for field in fields(ModelConfig):
        wanted, made = getattr(source, field.name), getattr(written, field.name)
        same = abs(made - wanted) <= _FLOAT32 * abs(wanted) if isinstance(wanted, float) else made == wanted
        if not same and field.name not in ("initializer_range", "rope_scaling"):
            raise Failure(f"the written model has {field.name} = {made}, its source {wanted}")
    if not torch.allclose(_turns(source), _turns(written), rtol=_SCALED, atol=0):
        raise Failure(f"the written model has rope_scaling = {written.rope_scaling}, its source {source.rope_scaling}")


def _turns(config: ModelConfig) -> Tensor:
    """By what angle each rotated pair turns from one token to the next."""
    frequency_R = frequencies(config)
    return frequency_R if config.rope_scaling is None else frequency_R / slowdown(frequency_R, config.rope_scaling)


def check_tensors(source: StoredModel, written: StoredModel, checked: Callable[[int], None]) -> None:
    """Compare every weight. Raises Failure where one is further from its source than its type's rounding takes it.

    `checked` is called with the number of weights of each part.
    """
    for name in source.names:
        kind = written.weights.stored_types[name]
        for wanted_RC, made_RC in zip(source.chunks(name), written.chunks(name), strict=True):
            rows = max(1, _CACHED_WEIGHTS // wanted_RC.shape[1])
            for wanted_PC, made_PC in zip(wanted_RC.split(rows), made_RC.split(rows), strict=True):
                wanted_PC = wanted_PC.float()
                error_PC = (made_PC.float() - wanted_PC).abs_()
                if kind in WORST_ERROR:
                    worst = _worst_error(wanted_PC, error_PC, kind)
                    if not worst <= WORST_ERROR[kind]:  # so that NaN fails, too
                        raise Failure(
                            f"{name} is not as it was: some of its weights have an error of {worst:.2g} of their size, "
                            f"and {kind} may have {WORST_ERROR[kind]:.2g}"
                        )
                elif not (error_PC <= _allowed(wanted_PC, kind)).all():
                    raise Failure(f"{name} is not as it was: a weight is further off than rounding to {kind} takes it")
            checked(wanted_RC.numel())


def _worst_error(weight_RC: Tensor, error_RC: Tensor, kind: str) -> float:
    """The greatest error of a block of 256, over the size of its weights and of what float16 can't tell from zero."""
    least = _LEAST_HALF["F16"] * GREATEST_MULTIPLE[kind] / WORST_ERROR[kind]
    error_N, size_N = (torch.linalg.vector_norm(part_RC.reshape(-1, 256), dim=1) for part_RC in (error_RC, weight_RC))
    return (error_N / size_N.add_(least * 256**0.5)).max().item()


def _allowed(weight_RC: Tensor, kind: str) -> Tensor:
    """How far each weight may be from its source."""
    if kind in HALF_UNIT:
        return weight_RC.abs() * HALF_UNIT[kind] + _LEAST_HALF.get(kind, 0.0)
    weight_NB, steps = weight_RC.reshape(-1, 32), STEPS[kind]
    low_N1, high_N1 = weight_NB.amin(1, keepdim=True), weight_NB.amax(1, keepdim=True)
    largest_N1 = torch.maximum(-low_N1, high_N1)
    step_N1 = (high_N1 - low_N1 if kind in ("Q4_1", "Q5_1") else largest_N1) / steps
    # Scale and minimum are float16, which moves the whole block a little, and more where they are very small.
    allowed_NB = (step_N1 / 2 + largest_N1 * 2**-9 + (steps + 1) * _LEAST_HALF["F16"]).expand_as(weight_NB)
    if kind in ("Q4_0", "Q5_0"):  # on one side they lack the last step
        allowed_NB = allowed_NB + (weight_NB.abs() - (steps - 0.5) * step_N1).clamp(min=0)
    return allowed_NB.reshape(weight_RC.shape)


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
    rows, length = prompt_BT.shape
    cache = KVCache(source.config, length + _GREEDY_TOKENS, torch.float32, torch.device("cpu"), rows)
    path, new_BT = [prompt_BT], prompt_BT
    for _ in range(_GREEDY_TOKENS):
        last_BD = hidden_states(source, new_BT, after_part, cache)[:, -1]
        new_BT = logits(source, last_BD).argmax(-1, keepdim=True)
        path.append(new_BT)
    return torch.cat(path, dim=1)


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
