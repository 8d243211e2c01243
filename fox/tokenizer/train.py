"""Learn a byte-level BPE vocabulary with Fox-1's special tokens.

Words are cut as Qwen2 cuts them: as Llama-3 does (no merges across words), but each digit for itself, so that a number is written in one way
and its places line up, whatever the training text counted. llama.cpp knows the rule as `stablelm2`. All 256 bytes are in the vocabulary, so
there is nothing that it can't write.

The same text gives the same vocabulary, in whatever order it comes and with however many threads: pairs are counted, and of those that are
equally frequent the one of the lower ids is merged first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from fox.errors import UserError
from fox.tokenizer.llama_cpp import QWEN2_WORDS
from fox.tokenizer.tokenizer import Tokenizer

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
# Gemma's order, which Fox-1's tokenizer keeps; the last three are the roles of Fox-1's template, one token each.
SPECIAL_TOKENS = (PAD, EOS, BOS, UNK, "<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>")

# Fox-1's template as reported (FOX1.md), after a <bos> as before every document. The generation block marks what is learnt.
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('role ' ~ message['role'] ~ ' is none of system, user, assistant') }}
{%- endif %}
{{- '<|' ~ message['role'] ~ '|>\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{- message['content'] ~ eos_token }}{%- endgeneration %}
{%- else %}
{{- message['content'] ~ eos_token }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>\\n' }}
{%- endif %}"""


def train_tokenizer(texts: Iterator[str], vocab_size: int, max_length: int) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` entries, learnt from `texts`. Raises UserError where they are too little for that."""
    # A whole word that is an entry is still put together by merges: llama.cpp does nothing else for this rule.
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(texts, trainer)
    size = backend.get_vocab_size(with_added_tokens=True)
    if size != vocab_size:
        raise UserError(
            "tokenizer.vocab_size",
            vocab_size,
            problem=f"is more than the training text has to offer: it gives {size} entries",
            mend=f"-o tokenizer.vocab_size={size}, or add text.",
        )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, SPECIAL_TOKENS.index(BOS))]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return Tokenizer(backend, config)
