"""Python's `re` cuts text into the words that the tokenizers library makes of it: for each character there is, and whatever stands beside it."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from fox.tokenizer.llama_cpp import DIGIT, LLAMA3_WORDS, WORD_RULES
from fox.tokenizer.word_patterns import SAFE_CUT, word_pattern

RULES = {rule.cuts: rule.pre_tokenizer() for rule in WORD_RULES}
CUTTERS = dict(zip(("llama-bpe", "qwen2", "smollm", "gpt-2"), RULES.values(), strict=True))
CUTTERS["smollm, spelt otherwise"] = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(DIGIT), "isolated"), CUTTERS["gpt-2"]]
)

BESIDE = (
    "a{0}!", "{0} ", "a{0}b\0", "1{0}2\0", " {0} \0", "'{0}e", "'l{0}\0", "\n {0}\n", "{0}{0} a ", "  {0}", "𝒳{0}\0", "😀{0}", "{0}𝒳\0", "!{0}a", " {0}𝟙", "{0}\r\n",
)  # fmt: skip
"""Where a character stands. What follows it lets each begin anew."""

PARTS = (
    " ", "  ", "\t", "\n", "\r", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u3000", "'", "s", "S", "ſ", "ll", "Re", "ve", "D", "a", "é", "\u0301", "日", "𝒳",
    "𐐀", "1", "12345", "²", "Ⅷ", "𝟙", "٣", "\U00011de0", "!", "...", "’", "—", "😀", "\u200d", "_", "\0", "\ufeff", "\U000f0000",
)  # fmt: skip
HARD = st.lists(st.one_of(st.text(max_size=2), st.sampled_from(PARTS))).map("".join)


def library_words(cutter: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in cutter.pre_tokenize_str(text)]


def our_words(cutter: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    pattern = word_pattern(cutter)
    assert pattern is not None
    return pattern.findall(text)


def each_character(beside: str, step_where_none_is: int = 1) -> str:
    """Every character there is; and of the planes that Unicode has left empty or private, all or each hundredth or so."""
    points = [*range(0xD800), *range(0xE000, 0x40000), *range(0x40000, 0x110000, step_where_none_is), *range(0xE0000, 0xE1000)]  # fmt: skip
    return "".join(beside.format(chr(point)) for point in points)


def test_each_character_is_of_the_same_class():
    text = each_character(
        "a{0}!"
    )  # a letter joins what is before, a sign what is behind, a digit neither, and white space is none of these
    assert our_words(CUTTERS["smollm"], text) == library_words(CUTTERS["smollm"], text)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cutter", CUTTERS.values(), ids=CUTTERS)
def test_each_character_is_cut_off_alike_wherever_it_stands(cutter):
    for number, beside in enumerate(BESIDE):
        text = each_character(beside, step_where_none_is=97 if number else 1)
        assert our_words(cutter, text) == library_words(cutter, text), beside


@pytest.mark.parametrize("cutter", CUTTERS.values(), ids=CUTTERS)
def test_three_in_a_row_are_cut_alike(cutter):
    text = "日1".join(map("".join, product(PARTS, repeat=3)))  # a contraction begins only where no sign is before it
    assert our_words(cutter, text) == library_words(cutter, text)


@given(text=HARD)
@pytest.mark.parametrize("cutter", CUTTERS.values(), ids=CUTTERS)
def test_any_text_is_cut_alike(cutter, text):
    assert our_words(cutter, text) == library_words(cutter, text)


@given(text=HARD, seam=st.sampled_from(["a b", "! !", "1 '", "' s", "~ 日", "a  b", "a \n"]), more=HARD)
@pytest.mark.parametrize("cutter", CUTTERS.values(), ids=CUTTERS)
def test_no_word_changes_where_a_long_text_is_cut(cutter, text, seam, more):
    whole = text + seam + more
    for cut in SAFE_CUT.finditer(whole):
        pieces = whole[: cut.start()], whole[cut.start() :]
        assert [word for piece in pieces for word in library_words(cutter, piece)] == library_words(cutter, whole)


def test_a_rule_that_is_not_known_has_no_pattern():
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other = pre_tokenizers.Split(Regex(LLAMA3_WORDS + "|x"), "isolated")
    for cutter in (
        None,
        byte_level,
        other,
        pre_tokenizers.Sequence([other, byte_level]),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Whitespace(),
    ):
        assert word_pattern(cutter) is None
