"""Texts are compared by runs of five words, whatever their case and their script."""

import random

import numpy as np
import pytest

from fox.data.duplicates import shingles
from fox.data.duplicates.shingles import jaccard, shingles_in, words_in


def of(text: str) -> set[int]:
    return set(shingles_in(words_in(text)).tolist())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("one two three four", 0),
        ("one two three four five", 1),
        ("One, two -- THREE\n\nfour_five six!", 2),
        ("天地玄黃", 0),
        ("天地玄黃,宇宙洪荒。", 4),
        ("これはペンです", 3),
        ("ภาษาไทยเขียนติดกัน", 11),
        ("한국어는 띄어쓰기를 합니다 그래서 낱말입니다", 1),
    ],
)
def test_runs_of_five_words(text, count):
    assert len(of(text)) == count


def test_case_and_punctuation_do_not_count_and_numbers_do():
    assert of("The year was 1066, said the King.") == of("the year WAS (1066) said  the king")
    assert of("The year was 1066, said the King.") != of("The year was 1067, said the King.")


def test_a_changed_character_of_chinese_costs_five_runs():
    text = "".join(map(chr, range(0x4E00, 0x4E64)))
    assert len(of(text) - of(f"{text[:50]}天{text[51:]}")) == 5


def test_a_long_text_is_split_in_parts_and_is_the_same(monkeypatch):
    text = "word and 漢字 words, " * 50
    whole = words_in(text)
    monkeypatch.setattr(shingles, "PART_CHARACTERS", 19)  # from one comma to the next
    assert np.array_equal(words_in(text), whole)


def test_the_share_of_runs_that_both_have_is_that_of_sets():
    source = random.Random(1)
    for _ in range(200):
        first, second = (set(source.choices(range(60), k=source.randrange(40))) for _ in range(2))
        shares = jaccard(*(np.array(sorted(each), dtype=np.uint32) for each in (first, second)))
        assert shares == (len(first & second) / len(first | second) if first | second else 0)
