"""What a recipe may say: every key, its type, bounds and default. The reference page is made from here."""

from __future__ import annotations

import math
import re
import typing
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fox.recipe.keys import KeyPath

LARGEST = 2**63 - 1
"""TOML's whole numbers have 64 bits."""

VERSION = 2
"""Of what recipes may say, today. Older pages are read, too (fox/recipe/migrate.py)."""


def _whole(value: Any) -> Any:
    """Let `2e6` stand where a whole number is meant: TOML reads it as a float."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def _chunk_length(value: Any) -> Any:
    if not isinstance(value, dict) or _is_by_length(value):
        return _one_chunk_length(value)
    if not value:
        raise ValueError(_CHUNK_LENGTH)
    return {key: _one_chunk_length(of_key) for key, of_key in value.items()}


def _one_chunk_length(value: Any) -> Any:
    """A length, or shares of tokens by length; lengths stay text, as TOML's keys are."""
    if isinstance(value, dict):
        lengths = [int(key) for key in value] if _is_by_length(value) else []
        shares = [share for share in value.values() if type(share) in (int, float) and 0 < share < math.inf]
        if (
            lengths
            and len(shares) == len(set(lengths)) == len(value)
            and all(0 < length <= LARGEST for length in lengths)
        ):
            return {str(length): float(share) for length, share in zip(lengths, shares, strict=True)}
    elif type(length := _whole(value)) is int and 0 < length <= LARGEST:
        return length
    raise ValueError(_CHUNK_LENGTH)


def _is_by_length(table: dict[str, Any]) -> bool:
    return bool(table) and all(re.fullmatch("[0-9]{1,19}", key) for key in table)


_CHUNK_LENGTH = (
    "must be a whole number above 0, or a table of such by source or kind: { text = 512, chat = 256 }, "
    "or shares of tokens by length: { 128 = 0.3, 256 = 0.7 }"
)

ByLength = dict[str, float]
"""Shares of tokens by chunk length."""
Whole = Annotated[int, BeforeValidator(_whole), Field(gt=0, le=LARGEST)]
WholeOrZero = Annotated[int, BeforeValidator(_whole), Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Hole(Exception):  # noqa: N818 (it never reaches a reader)
    """A value was asked for that is missing or faulty in the recipe. Only half-read recipes have holes."""


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, and nothing changes after it was read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise (Hole if name in type(self).model_fields else AttributeError)(name)


class Source(Section):
    """Where documents come from."""

    path: str
    """A file, a folder, or `pip:NAME` for the files that an installed package carries; `~` is your home folder."""
    kind: Literal["text", "chat"] = "text"
    """Plain documents, or conversations with `messages`."""
    files: str = "**/*"
    """Which files of the folder or package to read, as a glob."""
    text_field: str = "text"
    """Where a JSON or Parquet row keeps its text."""
    max_bad_fraction: Fraction = 0.01
    """The share of unusable records above which the run stops; below it they are set aside, counted and shown."""
    license: str = ""
    """Under which terms the documents are: an SPDX identifier or a short phrase. The model card tells it; empty is not stated."""
    url: str = ""
    """Where the documents come from, for the model card."""


class Data(Section):
    """How documents become training and held-out text."""

    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """The share of documents, chosen by the hash of their content, that no model is trained on."""


class Tokenizer(Section):
    """The byte-level BPE vocabulary."""

    vocab_size: Annotated[int, BeforeValidator(_whole), Field(ge=300, le=LARGEST)]
    """Entries in all, special tokens and the 256 bytes included."""
    sample_bytes: Whole = 100_000_000
    """How much training text to learn the merges from; more than this is sampled by document."""
    path: str | None = None
    """A folder with a `tokenizer.json` to use instead of training one."""


class Model(Section):
    """The decoder's shape, in Hugging Face's words for Llama."""

    start_from: str | None = None
    """A model to go on training: a Hugging Face folder, a .gguf file, a run, or a name on the hub. Its shape and its
    tokenizer come with it, so that the other keys here and tokenizer.vocab_size may be left out."""
    hidden_size: Whole
    """Width of the residual stream; a multiple of num_attention_heads where head_dim is not given."""
    intermediate_size: Whole
    """Width of the feed-forward layer."""
    num_hidden_layers: Whole
    """How many blocks of attention and feed-forward follow each other."""
    num_attention_heads: Whole
    """Query heads of each block."""
    num_key_value_heads: Whole
    """Key and value heads of each block, shared evenly by the query heads (GQA, arXiv 2305.13245)."""
    head_dim: Whole | None = None
    """Size of one head; hidden_size / num_attention_heads where it is not given."""
    max_position_embeddings: Whole
    """The longest chunk that the model is made for, in tokens."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary positions; larger turns slower and reaches further (RoPE, arXiv 2104.09864)."""
    rms_norm_eps: Positive = 1e-5
    """Added to the mean square before its root, against division by zero."""
    initializer_range: Positive = 0.02
    """Standard deviation of fresh weights."""
    tie_word_embeddings: bool = True
    """Use one matrix for reading tokens and for predicting them."""
    qk_norm: bool = False
    """Norm each head's queries and keys, which bears higher learning rates (arXiv 2302.05442, as Qwen3 has it, 2505.09388). The
    model is saved as Qwen3ForCausalLM instead of LlamaForCausalLM."""


class Optimizer(Section):
    """How gradients become steps; weight decay on matrices only."""

    name: Literal["adamw", "muon", "adafactor"] = "adamw"
    """`adamw` (arXiv 1711.05101); `muon` for the blocks' matrices with AdamW for embedding, head and norms, at AdamW's learning
    rates (arXiv 2502.16982); `adafactor`, which keeps a row and a column of each matrix' second moments (arXiv 1804.04235);
    its rate is the share of a matrix' own size that a step changes, about 1e-2, and at most 1 / sqrt(step)."""
    peak_learning_rate: Positive
    """The learning rate after warm-up and before the decay."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """How much of the mean gradient a step keeps (adamw)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """How much of the mean squared gradient a step keeps (adamw)."""
    eps: Positive = 1e-8
    """Added to the root of the mean squared gradient, against division by zero (adamw)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """How much of the mean gradient a step keeps (muon's matrices)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """The share of each matrix, times the learning rate, that a step takes away."""
    clip_norm: Positive = 1.0
    """Gradients are scaled down to this norm where theirs is larger."""


class Schedule(Section):
    """The learning rate over all stages together."""

    shape: Literal["wsd", "cosine", "constant"] = "wsd"
    """`wsd`: warm-up, stable, decay (MiniCPM, arXiv 2404.06395). `cosine`: half a wave from the end of the warm-up to the last token
    (arXiv 1608.03983). `constant`: nothing follows the warm-up."""
    warmup_tokens: WholeOrZero
    """The learning rate rises in a straight line over these."""
    decay_tokens: WholeOrZero = 0
    """The learning rate falls over the last of these (wsd, which needs it; 0 for no decay)."""
    decay_shape: Literal["1-sqrt", "linear"] = "1-sqrt"
    """1 - sqrt was the better cooldown in arXiv 2405.18392."""
    final_fraction: Fraction = 0.0
    """The share of the peak that is left at the end."""


class BatchRamp(Section):
    """Steps that grow in a straight line with the tokens that the stage has seen, rounded to what divides first and last step."""

    start: Whole
    """Tokens of the stage's first step: whole passes, as of batch_tokens."""
    tokens: Whole
    """How many tokens of the stage it takes to reach batch_tokens."""


class Stage(Section):
    """One stage of the curriculum."""

    tokens: Whole
    """How many tokens it trains on; rounded to whole steps."""
    chunk_length: Annotated[int | dict[str, int | float | ByLength], BeforeValidator(_chunk_length)]
    """Tokens that see each other, at most; one number, one for each source or kind, or shares of tokens by length: `{ 128 = 0.3, 256 = 0.7 }`."""
    rows: Whole
    """Rows, each of the longest chunk, in one forward and backward pass on one device; or `"auto"`: as many as fit the free memory, and are worth it."""
    batch_tokens: Whole
    """Tokens a step of the optimiser."""
    batch_ramp: BatchRamp | None = None
    """Begin the stage with smaller steps, which grow to batch_tokens: `{ start = 65536, tokens = 1e9 }`."""
    mix: Annotated[dict[str, Positive], Field(min_length=1)]
    """Relative weights of sources, or of kinds: `text` stands for all text sources that the table does not name."""
    mix_follows: Literal["odm"] | None = None
    """Let the mixture follow the measured loss of each source: Online Data Mixing (arXiv 2312.02406), from `mix` on. Off unless it is named."""
    mix_every_steps: Whole = 20
    """How many steps lie between two changes of a mixture that follows the loss."""

    def lengths_of(self, mix_key: str) -> dict[int, float]:
        """The chunk lengths of a key of the mix, each with its share of the tokens; the shares sum to 1."""
        of_key: Any = self.chunk_length
        if isinstance(of_key, dict) and not _is_by_length(of_key):
            of_key = of_key[mix_key]
        if isinstance(of_key, int):
            return {of_key: 1.0}
        total = sum(of_key.values())
        return {int(length): share / total for length, share in of_key.items()}

    @property
    def chunk_length_by_key(self) -> dict[str, Any] | None:
        """The chunk length of each source or kind, where each has its own."""
        table = self.chunk_length
        return table if isinstance(table, dict) and not _is_by_length(table) else None

    @property
    def row_length(self) -> int:
        """Tokens in a row: the longest chunk. Shorter chunks share a row and do not see each other."""
        keys = self.chunk_length_by_key or [""]
        return max(length for key in keys for length in self.lengths_of(key))

    @property
    def steps(self) -> int:
        in_ramp = len(self._ramp)
        return max(1, in_ramp + round((self.tokens - sum(self._ramp)) / self.batch_tokens))

    @property
    def total_tokens(self) -> int:
        """Of all its steps together: `tokens`, rounded to whole steps."""
        return self.tokens_before(self.steps)

    def batch_tokens_of(self, step: int) -> int:
        """Tokens of the stage's `step` (from 0)."""
        return self._ramp[step] if step < len(self._ramp) else self.batch_tokens

    def tokens_before(self, step: int) -> int:
        """Tokens of the stage's steps before `step` (from 0)."""
        return sum(self._ramp[:step]) + max(0, step - len(self._ramp)) * self.batch_tokens

    def steps_within(self, tokens: int) -> int:
        """How many of the stage's first steps begin before so many of its tokens are seen."""
        seen = steps = 0
        for batch_tokens in self._ramp:
            if seen >= tokens:
                return steps
            seen, steps = seen + batch_tokens, steps + 1
        return steps + max(0, -(-(tokens - seen) // self.batch_tokens))

    @property
    def _ramp(self) -> tuple[int, ...]:
        """The tokens of each step of the ramp."""
        if self.batch_ramp is None:
            return ()
        return _steps_of_ramp(self.batch_ramp.start, self.batch_ramp.tokens, self.batch_tokens, self.tokens)


class Train(Section):
    """How training runs, whatever is trained."""

    precision: Literal["auto", "bf16", "float32", "bf16-weights"] = "auto"
    """Of matrix products; weights and sums stay in float32. `auto` is bf16 where the processor has it built in. `bf16-weights` keeps
    matrices and their gradients in bf16 alone, with stochastic rounding: 4 bytes a weight, for a step of one pass on one device."""
    activation_checkpointing: bool = False
    """Keep only each block's input, and make the rest again on the way back: less memory, up to a third more work."""
    average_checkpoints: WholeOrZero = 0
    """The pre-trained model is the mean of its last so many checkpoints' weights (arXiv 2306.03241), which are kept for that; 0 takes the
    weights of the last step. The report has the scores of both."""
    compile: bool = True
    """Compile the model's blocks with torch.compile, from the first step on."""
    checkpoint_every_steps: Whole = 100
    """Steps between two checkpoints: at most so much is lost when a run is killed."""
    keep_checkpoints: Whole = 2
    """How many of the newest checkpoints stay on the disk."""
    milestone_every_steps: Whole | None = None
    """Checkpoints at multiples of this stay for good, beside the newest; none where it is not given. A multiple of
    checkpoint_every_steps."""
    tensor_parallel: Whole = 1
    """Among how many of torchrun's processes each block's heads and feed-forward columns are cut; the others share the rows."""
    max_epochs: Positive = 4.0
    """How often pre-training may see a source, over all stages: up to about 4 times is nearly as good as new text (arXiv 2305.16264)."""
    max_tune_epochs: Positive = 8.0
    """How often tuning may see a source of chats."""
    spike_deviations: Positive = 6.0
    """A step whose loss or gradient norm lies so many deviations above the last 128 good ones of its stage changes no weight
    (OLMo 2's rule, arXiv 2501.00656); nor does one that is not finite. A median loss that leaves half of this band is a drift."""
    skips_in_a_row: Whole = 8
    """After so many skipped steps in a row, training rolls back to an earlier checkpoint and passes over the data up to here."""
    drift_steps: Whole = 32
    """It does so, too, when the median loss of so many steps has left the band of those before."""
    roll_backs: WholeOrZero = 3
    """After so many roll-backs that led no further, training ends and says what to do."""


MAY_CHANGE = (
    "checkpoint_every_steps",
    "keep_checkpoints",
    "milestone_every_steps",
    "tensor_parallel",
    "max_epochs",
    "max_tune_epochs",
    "spike_deviations",
    "skips_in_a_row",
    "drift_steps",
    "roll_backs",
)
"""Of [train], what may change while a run goes on: when it is saved, how much of that is kept, among how many ranks it is cut,
and from where on something counts as too much. The change is on the run's record."""


class Tune(Stage):
    """Instruction tuning: one more stage, with loss on the assistant's tokens only."""

    optimizer: Optimizer
    schedule: Schedule


class Eval(Section):
    """What is measured on text that no model was trained on."""

    heldout_tokens: Whole = 100_000
    """At most so many held-out tokens of each source are scored."""
    prompts: list[str] = ["Hello! How are you today?", "What do you like to do?"]
    """Opening lines of the sample chats in the report."""
    reply_chats: Whole = 20
    """How many held-out chats the tuned model answers, to count whole replies and known words."""
    reply_tokens: Whole = 96
    """The longest sample reply."""
    reply_temperature: Annotated[float, Field(ge=0)] = 0.7
    """Of the sample replies; 0 always takes the likeliest token."""
    reply_top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sample replies draw from the likeliest tokens that together have this probability."""


class Recipe(Section):
    """A whole run: from sources to a tuned and measured model."""

    version: Whole = VERSION
    """Of the keys that a page may have, today 2. A page that says none is of version 1: it is read, and what has another name by now is told."""
    name: str
    """The run's folder below runs/."""
    seed: WholeOrZero = 0
    """Where all randomness starts: the same recipe and seed make the same run."""
    license: str = ""
    """Under which terms the model is given away: an SPDX identifier or a short phrase. Empty is not stated."""
    source: Annotated[dict[str, Source], Field(min_length=1)]
    data: Data = Data()
    tokenizer: Tokenizer
    model: Model
    train: Train = Train()
    optimizer: Optimizer
    schedule: Schedule
    stage: Annotated[dict[str, Stage], Field(min_length=1)]
    """The curriculum, in the order of the page."""
    tune: Tune | None = None
    eval: Eval = Eval()

    def sources_of(self, mix_key: str, mix: dict[str, float]) -> list[str]:
        """The sources that a key of a mix stands for: itself, or all of its kind that the mix does not name."""
        if mix_key in self.source:
            return [mix_key]
        return [name for name, source in self.source.items() if source.kind == mix_key and name not in mix]


@lru_cache(maxsize=64)
def _steps_of_ramp(start: int, ramp_tokens: int, batch_tokens: int, most: int) -> tuple[int, ...]:
    unit = math.gcd(start, batch_tokens)  # so that as many devices as share the first and the last step share all
    steps: list[int] = []
    seen = 0
    while seen < min(ramp_tokens, most):
        wanted = start + (batch_tokens - start) * seen / ramp_tokens
        steps.append(round(wanted / unit) * unit)
        seen += steps[-1]
    return tuple(steps)


def without_descriptions(page: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values but for licences and addresses: these tell about a run, and change nothing that it makes."""
    sources = page.get("source")
    if isinstance(sources, dict):
        page = {**page, "source": {name: _without(source, "license", "url") for name, source in sources.items()}}
    return _without(page, "license")


def _without(table: Any, *keys: str) -> Any:
    return {key: value for key, value in table.items() if key not in keys} if isinstance(table, dict) else table


def type_at(key: KeyPath) -> Any:
    """The schema's type for `key`, without Annotated and `| None`: Recipe for the page itself, None for no key."""
    kind: Any = Recipe
    for part in key:
        if is_section(kind):
            field = kind.model_fields.get(part)
            kind = plain(field.annotation) if field else None
        elif typing.get_origin(kind) in (dict, list):
            kind = plain(typing.get_args(kind)[-1])
        else:
            return None
    return kind


def documentation(key: KeyPath) -> str:
    """What the schema says of `key`; nothing where it says nothing."""
    section = type_at(key[:-1])
    field = section.model_fields.get(key[-1]) if is_section(section) else None
    return (field.description or "") if field else ""


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


def plain(annotation: Any) -> Any:
    """A type without Annotated, and without the `| None` of an optional key."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    if type(None) in typing.get_args(annotation) and len(options) == 1:
        return plain(options[0])
    return annotation
