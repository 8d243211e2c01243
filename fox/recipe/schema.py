"""What a recipe may say: every key, its type, bounds and default. The reference page is made from here."""

from __future__ import annotations

import typing
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fox.recipe.keys import KeyPath
from fox.recipe.section import LARGEST, Fraction, Positive, Section, Whole, WholeOrZero, is_section, plain, whole
from fox.recipe.stage import Stage

TOP = "top:"
"""How the path of a source begins that has the best documents of another."""

VERSION = 2
"""Of what recipes may say, today. Older pages are read, too (fox/recipe/migrate.py)."""


class Filter(Section):
    """Which web documents are kept."""

    languages: list[str] = Field(default=[])
    """ISO 639-1 codes of the languages that are kept (py3langid's guess from the beginning of the text); empty keeps all."""
    min_language_score: Fraction = 0.65
    """Where `languages` names some: the probability from which the guess counts; documents below are dropped."""
    rules: list[Literal["gopher", "repetition", "c4", "fineweb"]] = Field(default=[])
    """Rules about the form of a text, always applied in this order: Gopher's quality and repetition rules (arXiv 2112.11446, appendix A.1.1), C4's
    (arXiv 1910.10683, section 2.2), which also cut lines that are no sentences, and FineWeb's (arXiv 2406.17557, section 3.6)."""
    bad_words: list[str] = Field(default=[])
    """Files of words and phrases, one a line (# begins a comment; also .gz), that are looked for as whole words, whatever their case."""
    max_bad_words: WholeOrZero = 0
    """A document with more of `bad_words` is dropped. C4 drops at the first (arXiv 1910.10683); that hits texts of and about minorities, too
    (arXiv 2104.08758), for which a list of few words or a higher number helps."""
    blocked_urls: list[str] = Field(default=[])
    """Files of domains and addresses, one a line (# begins a comment; also .gz): a domain blocks its subdomains, too, an address its page and what
    is below it."""


class Source(Section):
    """Where documents come from."""

    path: str
    """A file, a folder, or `pip:NAME` for the files that an installed package carries; `~` is your home folder; or `top:NAME`, see data.quality."""
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
    filter: Filter | None = None
    """Drops documents by their address, language, words and form; without it all are kept."""

    @property
    def best_of(self) -> str | None:
        """The source of which these are the best documents; None where they are read from files."""
        return self.path.removeprefix(TOP) if self.path.startswith(TOP) else None


class Executor(Section):
    """Where the corpus is made: datatrove's executors, a task for each large file or group of small ones. The outcome is the same to the
    last bit whatever is said here, and may be changed while it is made."""

    kind: Literal["local", "slurm", "ray"] = "local"
    """This machine's processes, an array of Slurm jobs, or tasks of a Ray cluster. The run's folder must be on a disk that all of them see."""
    workers: WholeOrZero = 0
    """Tasks at a time; 0 is one for each core (local), or as many as the cluster gives."""
    memory_gb: Whole = 4
    """For each task, in GB, as it is asked of Slurm."""
    partition: str = ""
    """Where Slurm runs the tasks."""
    time: str = "24:00:00"
    """The longest that a Slurm task may take."""
    setup: str = ""
    """A shell command that a Slurm task begins with, such as `source /shared/fox/.venv/bin/activate`."""
    address: str = ""
    """Of a Ray cluster, such as `auto`; empty starts one of this machine's cores, for as long as the step takes."""


class Duplicates(Section):
    """What counts as said before, over all sources; of documents that are alike the first stays. Identical ones always go."""

    near: bool = True
    """Documents go, too, that are nearly one that stays (MinHash, arXiv 2406.17557)."""
    min_jaccard: Annotated[float, Field(ge=0.7, le=1)] = 0.75
    """From which share of common runs of five words, of all that either has, two documents are nearly the same. It is counted, not
    estimated; of pairs at 0.7, 0.75, 0.8 and 0.9 some 82, 94, 99 and 100 % are looked at."""
    lines: bool = False
    """Lines of eight words and more go that an earlier document has, too (as in CCNet, arXiv 1911.00359)."""


class Quality(Section):
    """Which documents are the best of their source: those most like examples, by a linear classifier of words and pairs of words (of fastText's
    class, as in DCLM, arXiv 2406.11794). They are moved to the source whose path is `top:` and the source's name, so that a last stage can name it."""

    good: Annotated[list[str], Field(min_length=1)]
    """Files of documents that are as is wanted, in any format of a source (rows have their text in `text`), or globs of them. Hundreds do; of more
    than 20,000 a part is drawn."""
    bad: list[str] = Field(default=[])
    """Files of documents that are as is not wanted; where there are none, documents drawn from the ranked sources stand for the ordinary."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of the documents of a ranked source that pass filters and duplicates, the share that is moved. DCLM kept a tenth."""


class Data(Section):
    """How documents become training and held-out text. With `executor`, a source's `filter`, `duplicates`, or `quality`, a corpus is made of them first."""

    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """The share of documents, chosen by the hash of their content, that no model is trained on."""
    decontaminate: list[str] = Field(default=[])
    """Files of evaluation questions (.jsonl, .json, also compressed), or globs of them: a document that has 13 words in a row of one of their
    texts, or a shorter text as a whole, is left out (arXiv 2005.14165, appendix C)."""
    duplicates: Duplicates | None = None
    """Documents and lines that were there before are left out; all stay where it is not given."""
    quality: Quality | None = None
    """The best documents of a source become a source of their own."""
    mask_personal: list[Literal["email", "ip", "card", "phone"]] = Field(default=[])
    """Personal data that give way to values kept free for examples: e-mail and IP addresses, card numbers whose check digit is right, telephone
    numbers that begin with + or are written as in North America."""
    unlicensed: Literal["keep", "leave out"] = "leave out"
    """Of a corpus: what becomes of documents whose terms neither their row or page nor their source states."""
    executor: Executor | None = None
    """Make a corpus of the sources first, in parallel."""


class Tokenizer(Section):
    """The byte-level BPE vocabulary."""

    vocab_size: Annotated[int, BeforeValidator(whole), Field(ge=300, le=LARGEST)]
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


class Train(Section):
    """How training runs, whatever is trained."""

    precision: Literal["auto", "bf16", "float32", "bf16-weights"] = "auto"
    """Of matrix products; weights and sums stay in float32. `auto` is bf16 where the processor has it built in. `bf16-weights` keeps
    matrices and their gradients in bf16 alone, with stochastic rounding: 4 bytes a weight, for a step of one pass on one device."""
    activation_checkpointing: bool = False
    """Keep only each block's input, and make the rest again on the way back: less memory, up to a third more work."""
    average_checkpoints: WholeOrZero = 0
    """The pre-trained model is the mean of its last so many checkpoints' weights (arXiv 2306.03241), none of them from the warm-up; where
    the last step's weights alone need fewer bits for the held-out text, it is these. The report has the scores of both. 0 averages none."""
    compile: bool = True
    """Compile the model's blocks with torch.compile, from the first step on."""
    checkpoint_every_steps: Whole = 100
    """Steps between two checkpoints: at most so much is lost when a run is killed."""
    keep_checkpoints: Whole = 2
    """How many of the newest checkpoints stay on the disk; up to two older ones do, too, so that one is from before any drift."""
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
    (OLMo 2's rule, arXiv 2501.00656); nor does one that is not finite. A median loss that leaves two thirds of this band is a drift.
    In warm-up and the first 8 steps of a stage the band ends at half as many times ln(vocabulary); up to the 32nd it is four times as wide."""
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
    prompts: list[str] = Field(default=["Hello! How are you today?", "What do you like to do?"])
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

    @property
    def makes_corpus(self) -> bool:
        """Whether the sources are made into a corpus before anything is learnt from them."""
        wanted = self.data.executor or self.data.duplicates or self.data.quality
        return bool(wanted) or any(source.filter for source in self.source.values())


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
