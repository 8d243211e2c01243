"""Gopher's quality rules at, just within and just beyond each threshold."""

import pytest

from fox.data.filters.gopher import fault
from fox.data.filters.page import Page

STOPS = "the and "


def of(*parts: tuple[str, int]) -> str:
    return " ".join(word for word, times in parts for _ in range(times))


def lines(*parts: tuple[str, int]) -> str:
    return "\n".join(line for line, times in parts for _ in range(times))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (of(("the", 25), ("and", 25), (",", 5)), ""),
        (of(("the", 25), ("and", 24), (",", 5)), "fewer than 50 words"),
        ("", "fewer than 50 words"),
        (of(("...", 100)), "fewer than 50 words"),
        (of(("the", 1), ("and", 99_999)), ""),
        (of(("the", 1), ("and", 100_000)), "more than 100000 words"),
        (of(("of", 1), ("the", 98), ("that", 1)), ""),
        (of(("of", 1), ("the", 99)), "words shorter than 3 characters"),
        (of(("the", 1), ("and", 1), ("abcdefghij", 96), ("abcdefghijklmnopq", 2)), ""),
        (of(("the", 1), ("and", 1), ("abcdefghij", 96), ("abcdefghijklmnopqr", 2)), "words longer than 10 characters"),
        (STOPS + of(("abcd", 52), ("#", 6)), ""),
        (STOPS + of(("abcd", 52), ("#", 7)), "too many hash signs"),
        (STOPS + of(("…", 3), ("...", 3), ("abcd", 52)), ""),
        (STOPS + of(("…", 3), ("...", 4), ("abcd", 52)), "too many ellipses"),
        (lines(("- the and of abcde abcde abcde", 5), (" • the and of abcde abcde abcde", 4), ("the and", 1)), ""),
        (lines(("- the and of abcde abcde abcde", 5), (" • the and of abcde abcde abcde", 5)), "mostly bullet points"),
        (lines(("the and of abcde abcde abcde a...", 3), ("the and of abcde abcde abcde ab.", 7)), ""),
        (lines(("the and of abcde abcde abcde a... ", 2), ("the and of abcde abcde abcde a…", 2), ("the and of abcde abcde abcde ab.", 6)), "lines end in ellipses"),
        (STOPS + of(("abcd", 78), ("1234", 20)), ""),
        (STOPS + of(("abcd", 77), ("1234", 20)), "too few words with letters"),
        (of(("the", 1), ("that", 1), ("abcd", 48)), ""),
        (of(("the", 50), ("The", 1), ("abcd", 1)), "too few stop words"),
    ],
)  # fmt: skip
def test_each_threshold(text, reason):
    assert fault(Page(text)) == reason


def test_stop_words_are_asked_for_in_english_alone():
    text = of(("wort", 50))
    assert fault(Page(text, "en")) == "too few stop words"
    assert fault(Page(text, "de")) == ""


@pytest.mark.parametrize(("language", "text"), [("zh", "我们都是中国人" * 20), ("ko", of(("우리", 60)))])
def test_words_are_of_another_length_in_other_scripts(language, text):
    assert fault(Page(text, language)) == ""
    assert fault(Page(text, "fr")) == "words shorter than 3 characters"


def test_a_text_without_spaces_has_as_many_words_as_its_characters_make():
    assert fault(Page("我们" * 49, "zh")) == "fewer than 50 words"
    assert fault(Page("我们" * 50, "zh")) == ""
