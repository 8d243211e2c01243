"""What llama.cpp knows of tokenizers: how it cuts text into words, its kinds of token, and the tokens that end a reply.

GGUF files name all this and say nothing more of it; what the names mean is written in llama.cpp's src/llama-vocab.cpp
(llm_tokenizer_bpe for the cuts, llama_vocab::impl::load for the rest).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import Regex, pre_tokenizers


class Kind(IntEnum):
    """`tokenizer.ggml.token_type`, an entry a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# The role of a token in tokenizer_config.json (without its _token), and its id's key in a GGUF file. llama.cpp spells seperator so.
ROLES = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}

# The tokens that llama.cpp takes for the end of a turn, where a file names none; whichever it comes upon first.
END_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]",
    "<｜end▁of▁sentence｜>", "<end_of_utterance>",
)  # fmt: skip

# It stops at any token of these names, whatever the file says of it, and makes a control token of it.
_ENDS = frozenset(END_OF_TURN) | {
    "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>", "<turn|>", "<|tool_response>", "[e~[",
    # of a file's middle, which a model of code writes when it has said all
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
    "<|file_sep|>",
}  # fmt: skip


def ends_of_reply(names: Iterable[str]) -> set[str]:
    """Which of a vocabulary's tokens end a reply by their names alone."""
    ends = set(_ENDS.intersection(names))
    if {"<|call|>", "<|calls|>"} & ends and {"<|return|>", "<|flush|>"} & ends:
        ends -= {"<|end|>"}  # in the harmony format it ends a message, and the reply goes on
    if "<|tool_response>" in ends:
        ends -= {"</s>"}  # an HTML tag there (Gemma 4)
    return ends


@dataclass(frozen=True)
class WordRule:
    """A value of `tokenizer.ggml.pre`: the names that llama.cpp gives one rule (we write the first), and the rule.

    `cuts` are applied in order, each to the pieces that the one before has left.
    """

    names: tuple[str, ...]
    cuts: tuple[str, ...]
    is_nfc: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The rule as tokenizer.json files have it."""
        *others, last = self.cuts
        steps = [_written(cut) for cut in others] + ([] if last == GPT2_WORDS else [_written(last)])
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=last == GPT2_WORDS))
        return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


DIGIT = r"\p{N}"
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")

# Only what Fox can state exactly. Compared with llama.cpp over 50,000 characters, the cuts differ for those that Unicode got in 2024
# or later, which llama.cpp's tables lack, and where 'ſ (a long s) reads as 's without regard to case. llama.cpp never normalises text
# for these models, though Qwen's own tokenizer.json asks for NFC: text that is not NFC gives other tokens there.
WORD_RULES = (
    WordRule(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (LLAMA3_WORDS,), ignores_merges=True, adds_bos=True,
    ),
    WordRule(("smaug-bpe", "dbrx"), (LLAMA3_WORDS,)),
    WordRule(("qwen2", "deepseek-r1-qwen", "megrez"), (QWEN2_WORDS,), is_nfc=True),
    WordRule(("stablelm2",), (QWEN2_WORDS,)),
    WordRule(("smollm", "starcoder", "refact", "codeshell"), (DIGIT, GPT2_WORDS)),
    WordRule(("gpt-2", "phi-2", "olmo", "exaone4"), (GPT2_WORDS,)),
)  # fmt: skip

_CONTRACTIONS = {
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "'(?i:[sdmt]|ll|ve|re)": "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "'(?:[sdmt]|ll|ve|re)": "'s|'t|'re|'ve|'m|'ll|'d",
}


def cuts_of(stated: Any) -> tuple[str, ...] | None:
    """The cuts of a tokenizer.json's `pre_tokenizer`, however it spells them; None where it is none that cuts and then maps bytes."""
    steps = _flat(stated)
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    cuts: list[str] = []
    for step in steps[:-1]:
        cut = _cut(step)
        if cut is None:
            return None
        cuts.append(cut)
    return (*cuts, GPT2_WORDS) if steps[-1].get("use_regex", True) else tuple(cuts)


def _cut(step: dict[str, Any]) -> str | None:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return DIGIT
    pattern = step.get("pattern")
    if step.get("type") != "Split" or not isinstance(pattern, dict) or "Regex" not in pattern:
        return None
    cut = str(pattern["Regex"])
    for spelling, ours in _CONTRACTIONS.items():
        cut = cut.replace(spelling, ours)
    # These match any text from end to end, so it is the same to keep what they match and to remove what they don't.
    whole = cut in (GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS) and (step.get("behavior"), step.get("invert")) == (
        "Removed",
        True,
    )
    return cut if whole or (step.get("behavior"), step.get("invert")) == ("Isolated", False) else None


def _flat(stated: Any) -> list[dict[str, Any]]:
    if not isinstance(stated, dict):
        return []
    if stated.get("type") == "Sequence":
        return [step for inner in stated["pretokenizers"] for step in _flat(inner)]
    return [stated]


def _written(cut: str) -> pre_tokenizers.PreTokenizer:
    if cut == DIGIT:
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Split(Regex(cut), behavior="isolated")
