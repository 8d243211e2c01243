"""Words that are looked up have the library's ids: met before or not, in pieces or not, and after all was forgotten."""

from __future__ import annotations

import time

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fox.errors import UserError
from fox.tokenizer import Tokenizer, word_table
from fox.tokenizer.hard_texts import HARD_TEXTS
from fox.tokenizer.word_table import WordTable

HARD = [text.decode() for text in HARD_TEXTS if text == text.decode(errors="ignore").encode()]
PROSE = "The fox ran. It didn't stop, 12345 times!\n\n    def naïve(日本語):\n\treturn '𝒳 🦊'  \n"
SOME = st.lists(st.one_of(st.text(max_size=30), st.sampled_from([*HARD, PROSE])), max_size=6)


@pytest.fixture
def fresh(tiny_tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(tiny_tokenizer.backend, tiny_tokenizer.config)


def lacking_bytes() -> Tokenizer:
    """As SmolLM2's vocabulary, which has no token for 21 bytes: they vanish. Here they are most of those above 127."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())[:150]
    vocabulary = {letter: n for n, letter in enumerate(letters)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary | {"he": 900, "the": 901}, [("h", "e"), ("t", "he")]))  # fmt: skip
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(backend, {})


def with_unknown() -> Tokenizer:
    """One that has a token for all that it has none for, in a row. By its two letters it would be taken for two bytes."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "Ġ": 1, "é": 2, "éé": 3}, [], unk_token="éé", fuse_unk=True))  # fmt: skip
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return Tokenizer(backend, {})


def assert_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert tokenizer._word_table is not None, "the plain way would be compared with itself"
    ours, plain = tokenizer.encode_arrays(texts), tokenizer.encode_batch(texts)
    assert all(ids.dtype == np.uint32 for ids in ours)
    assert [ids.tolist() for ids in ours] == plain


@given(texts=SOME, again=SOME)
def test_the_ids_are_the_librarys(tiny_tokenizer: Tokenizer, texts: list[str], again: list[str]) -> None:
    assert_same(tiny_tokenizer, texts)
    assert_same(tiny_tokenizer, again)
    assert_same(tiny_tokenizer, texts)


@given(texts=SOME)
@pytest.mark.parametrize("tokenizer", [lacking_bytes(), with_unknown()], ids=["lacking bytes", "with an unknown token"])
def test_the_ids_are_the_librarys_where_bytes_have_no_token(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert_same(tokenizer, texts)


def test_a_word_is_not_given_the_ids_of_its_neighbours() -> None:
    """Bytes without a token, where the tokens of all words together are as long as the words."""
    assert_same(with_unknown(), ["bbb", "a", "ab"])
    assert_same(lacking_bytes(), ["ڀ"])  # it has neither of these two bytes
    assert_same(lacking_bytes(), ["the", "ڀ日", "he theڀ"])


@pytest.mark.parametrize(("stretch", "words"), [(1, 1 << 19), (7, 1 << 19), (40, 5), (1_000_000, 0)])
def test_neither_pieces_nor_forgetting_change_an_id(fresh: Tokenizer, monkeypatch: pytest.MonkeyPatch, stretch: int, words: int) -> None:  # fmt: skip
    monkeypatch.setattr(word_table, "STRETCH", stretch)
    monkeypatch.setattr(word_table, "MOST_WORDS", words)
    texts = ["", PROSE, "", *HARD, PROSE * 3, "a b", " "]
    for _ in range(2):
        assert_same(fresh, texts)
    table = fresh._word_table
    assert table is not None
    assert len(table._rows) <= words


def test_long_words_do_not_fill_the_memory(fresh: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_table, "MOST_CHARACTERS", 1000)
    assert_same(fresh, ["a" * 2000, "b" * 100])
    table = fresh._word_table
    assert table is not None
    assert not table._rows


def test_a_word_that_is_no_text_is_not_remembered(fresh: Tokenizer) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match="not UTF-8"):
            fresh.encode_arrays([PROSE, "half \ud800 a character"])
    assert_same(fresh, [PROSE])


def test_the_comparison_notices_a_wrong_id(fresh: Tokenizer) -> None:
    assert_same(fresh, [PROSE])
    table = fresh._word_table
    assert table is not None
    table._ids[3] += 1
    with pytest.raises(AssertionError):
        assert_same(fresh, [PROSE])


def changed(tokenizer: Tokenizer, what: str) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    match what:
        case "normalises":
            backend.normalizer = tokenizers.normalizers.NFC()
        case "finds tokens in text":
            backend.add_tokens(["fox"])
        case "is random":
            backend.model.dropout = 0.5
        case "marks what goes on":
            backend.model.continuing_subword_prefix = "#"
        case "marks what ends":
            backend.model.end_of_word_suffix = "#"
        case "falls back to bytes":
            backend.model.byte_fallback = True
        case "cuts otherwise":
            backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        case "is no BPE":
            backend.model = tokenizers.models.WordLevel({"fox": 0, "?": 1}, unk_token="?")
        case "cuts texts short":
            backend.enable_truncation(3)
        case "fills texts up":
            backend.enable_padding()
    return Tokenizer(backend, {})


@pytest.mark.parametrize(
    "what",
    ["normalises", "finds tokens in text", "is random", "marks what goes on", "marks what ends", "falls back to bytes", "cuts otherwise", "is no BPE", "cuts texts short", "fills texts up"],
)  # fmt: skip
def test_other_tokenizers_are_left_to_the_library(tiny_tokenizer: Tokenizer, what: str) -> None:
    other = changed(tiny_tokenizer, what)
    assert other._word_table is None
    if what != "is random":
        assert [ids.tolist() for ids in other.encode_arrays([PROSE, "e\u0301"])] == other.encode_batch([PROSE, "e\u0301"])  # fmt: skip


def test_special_tokens_in_text_stay_text_or_are_left_to_the_library(tiny_tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer.from_str(tiny_tokenizer.backend.to_str())
    backend.encode_special_tokens = False
    assert WordTable.of(backend) is None
    assert_same(tiny_tokenizer, ["<eos> and <bos>"])


@pytest.mark.parametrize("text", ["a" * 10**6, " " * 10**6, "a b" * 200_000, "𝒳a" * 300_000, "!" * 10**6, " \n" * 500_000 + "x", "'" * 10**6, "1" * 10**6, " !" * 200_000], ids=lambda text: repr(text[:3]))  # fmt: skip
def test_hostile_text_is_no_slower_than_for_the_library(fresh: Tokenizer, text: str) -> None:
    fresh.encode_arrays(["warm"])
    start = time.perf_counter()
    fresh.encode_batch([text])
    plain = time.perf_counter() - start
    start = time.perf_counter()
    assert_same(fresh, [text])
    assert time.perf_counter() - start < 3 * plain + 0.5  # it holds a second of the library's own


@settings(max_examples=20)
@given(text=st.text(max_size=200))
def test_texts_are_encoded_alike_alone_and_together(tiny_tokenizer: Tokenizer, text: str) -> None:
    alone = [tiny_tokenizer.encode_arrays([part])[0].tolist() for part in (text, PROSE)]
    assert [ids.tolist() for ids in tiny_tokenizer.encode_arrays([text, PROSE])] == alone
