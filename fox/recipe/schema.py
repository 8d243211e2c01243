"""What a recipe may say: every key, its type, bounds and default. The reference page is made from here."""

from __future__ import annotations

import math
import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fox.recipe.keys import KeyPath

LARGEST = 2**63 - 1
"""TOML's whole numbers have 64 bits."""


def _whole(value: Any) -> Any:
    """Let `2e6` stand where a whole number is meant: TOML reads it as a float."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def _chunk_length(value: Any) -> Any:
    whole = {key: _whole(length) for key, length in value.items()} if isinstance(value, dict) else _whole(value)
    lengths = list(whole.values()) if isinstance(whole, dict) else [whole]
    if not lengths or not all(type(length) is int and 0 < length <= LARGEST for length in lengths):
        raise ValueError(
            "must be a whole number above 0, or a table of such by source or kind: { text = 512, chat = 256 }"
        )
    return whole


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


class Optimizer(Section):
    """AdamW; weight decay on matrices only."""

    peak_learning_rate: Positive
    """The learning rate after warm-up and before the decay."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """How much of the mean gradient a step keeps."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """How much of the mean squared gradient a step keeps."""
    eps: Positive = 1e-8
    """Added to the root of the mean squared gradient, against division by zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """The share of each matrix, times the learning rate, that a step takes away."""
    clip_norm: Positive = 1.0
    """Gradients are scaled down to this norm where theirs is larger."""


class Schedule(Section):
    """Warm-up, stable, decay (MiniCPM, arXiv 2404.06395), over all stages together."""

    warmup_tokens: WholeOrZero
    """The learning rate rises in a straight line over these."""
    decay_tokens: WholeOrZero
    """The learning rate falls over the last of these."""
    decay_shape: Literal["1-sqrt", "linear"] = "1-sqrt"
    """1 - sqrt was the better cooldown in arXiv 2405.18392."""
    final_fraction: Fraction = 0.0
    """The share of the peak that is left at the end."""


class Stage(Section):
    """One stage of the curriculum."""

    tokens: Whole
    """How many tokens it trains on; rounded to whole steps."""
    chunk_length: Annotated[Whole | dict[str, Whole], BeforeValidator(_chunk_length)]
    """Tokens that see each other, at most; one number, or one for each source or kind."""
    rows: Whole
    """Rows, each of the longest chunk, in one forward and backward pass on one device."""
    batch_tokens: Whole
    """Tokens a step of the optimiser."""
    mix: Annotated[dict[str, Positive], Field(min_length=1)]
    """Relative weights of sources, or of kinds: `text` stands for all text sources that the table does not name."""

    @property
    def row_length(self) -> int:
        """Tokens in a row: the longest chunk. Shorter chunks share a row and do not see each other."""
        return max(self.chunk_length.values()) if isinstance(self.chunk_length, dict) else self.chunk_length

    @property
    def steps(self) -> int:
        return max(1, round(self.tokens / self.batch_tokens))


class Train(Section):
    """How training runs, whatever is trained."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Of matrix products; weights and sums stay in float32. `auto` is bf16 where the processor has it built in."""
    compile: bool = True
    """Compile the model's blocks with torch.compile, from the first step on."""
    checkpoint_every_steps: Whole = 100
    """Steps between two checkpoints: at most so much is lost when a run is killed."""
    keep_checkpoints: Whole = 2
    """How many of the newest checkpoints stay on the disk."""


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
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Of the sample replies; 0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Sample replies draw from the likeliest tokens that together have this probability."""


class Recipe(Section):
    """A whole run: from sources to a tuned and measured model."""

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
