"""A vocabulary that is cut is the vocabulary that a training of that size gives; and what a trained vocabulary must have."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from fox.errors import UserError
from fox.tokenizer import Tokenizer
from fox.tokenizer.cut import cut_tokenizer
from fox.tokenizer.train import SPECIAL_TOKENS, train_tokenizer

DRAW = random.Random(4)
WORDS = ["".join(DRAW.choices("abcdeé日", k=DRAW.randint(2, 8))) for _ in range(3000)]
TEXTS = [
    f"{' '.join(WORDS[place : place + 20])} {place * 37} in 2024\n    def {WORDS[place]}():\n        return\n"
    for place in range(0, 3000, 20)
]
"""Words of which hardly any is more frequent than another, so that most merges are ties."""


@pytest.fixture(scope="module")
def large() -> Tokenizer:
    return train_tokenizer(iter(TEXTS), 1500, 64)


@pytest.mark.parametrize("entries", [265, 266, 300, 700, 1499])
def test_a_cut_is_a_training_of_that_size(large: Tokenizer, entries: int) -> None:
    small, cut = train_tokenizer(iter(TEXTS), entries, 64), cut_tokenizer(large, entries)
    assert cut.backend.to_str() == small.backend.to_str()
    assert cut.config == small.config
    assert cut.encode(TEXTS[3]) == small.encode(TEXTS[3])
    assert cut.vocab_size == entries


def test_the_comparison_notices_a_merge_too_many(large: Tokenizer) -> None:
    cut = json.loads(cut_tokenizer(large, 700).backend.to_str())
    cut["model"]["merges"].pop()
    assert tokenizers.Tokenizer.from_str(json.dumps(cut)).to_str() != train_tokenizer(iter(TEXTS), 700, 64).backend.to_str()  # fmt: skip


def test_an_entry_that_is_made_in_two_ways_is_cut_right() -> None:
    """abc of ab and c, and of a and bc: the second is a merge without an entry of its own, and comes before the next entry or not at all."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: n for n, letter in enumerate(letters)} | {"ab": 256, "bc": 257, "abc": 258, "abcd": 259}
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("abc", "d")]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    backend.decoder = tokenizers.decoders.ByteLevel()
    cut = cut_tokenizer(Tokenizer(backend, {}), 259)
    assert json.loads(cut.backend.to_str())["model"]["merges"] == [["a", "b"], ["b", "c"], ["ab", "c"]]


@pytest.mark.parametrize(
    ("entries", "problem"), [(1500, "is not less than the 1500"), (264, "is less than what .* 265 special")]
)
def test_sizes_that_can_not_be_had(large: Tokenizer, entries: int, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        cut_tokenizer(large, entries)


def test_a_vocabulary_in_another_order_is_not_cut(large: Tokenizer) -> None:
    stated = json.loads(large.backend.to_str())
    vocab = stated["model"]["vocab"]
    one, other = (token for token, token_id in vocab.items() if token_id in (900, 901))
    vocab[one], vocab[other] = vocab[other], vocab[one]
    with pytest.raises(UserError, match="don't follow the order of the ids"):
        cut_tokenizer(Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(stated)), {}), 700)


def test_tokens_that_were_added_behind_are_not_cut_off(large: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(large.backend.to_str())
    backend.add_special_tokens(["<late>"])
    with pytest.raises(UserError, match="is less than what comes before"):
        cut_tokenizer(Tokenizer(backend, {}), 700)


def test_a_vocabulary_that_is_not_learnt_in_order_is_not_cut() -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(UserError, match="is no byte-level BPE"):
        cut_tokenizer(Tokenizer(words, {}), 1)


TRAIN = """
import hashlib, sys
from fox.tokenizer.train import train_tokenizer
from tests.unit.tokenizer.test_cut import TEXTS
texts = TEXTS[::-1] if sys.argv[1] == "backwards" else TEXTS
print(hashlib.sha256(train_tokenizer(iter(texts), 1500, 64).backend.to_str().encode()).hexdigest())
"""


def test_the_same_text_gives_the_same_vocabulary() -> None:
    """With one thread and with several, in any order, whatever Python's own hashes are: where all is equally frequent, too."""
    made = set()
    for threads, hash_seed, order in (("1", "1", "forwards"), ("3", "2", "backwards")):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed}
        environment["PYTHONPATH"] = str(Path(__file__).parents[3])
        command = [sys.executable, "-c", TRAIN, order]
        made.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(made) == 1


def test_what_each_vocabulary_has(large: Tokenizer) -> None:
    """Every byte; digits one by one; a run of spaces as one token; special tokens from no text."""
    for byte in range(256):
        (token,) = large.encode(bytes([byte]))
        assert large.decode_bytes([token]) == bytes([byte])
    digits = [large.encode(digit)[0] for digit in "1234567890"]
    assert [token for token in large.encode("x1234567890")[-10:]] == digits
    assert [large.encode(digit)[0] for digit in "2024"] == large.encode("2024"), "however frequent it is"
    assert len(large.encode("٣٤")) == 2 * len(large.encode("٣")), "of every script"
    (indentation,) = large.encode(" " * 7)
    assert large.encode("        return")[0] == indentation, "the eighth space belongs to the word"
    text = "".join(SPECIAL_TOKENS) * 2
    assert not set(large.encode(text)) & set(large.special_ids.values())
    assert large.decode(large.encode(text)) == text
