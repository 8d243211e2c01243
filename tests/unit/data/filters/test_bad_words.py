"""Bad words are found as whole words, whatever their case; in scripts without spaces wherever they stand."""

import pytest

from fox.data.filters.bad_words import BadWords, bad_word

WORDS = BadWords(
    map(bad_word, ["Darn", "very  bad", "b&d", "c++", "STRASSE", "कम", "坏", "坏人", "ไม่ดี", "one two three"])
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("darn", 1),
        ("DARN! darn, (Darn) darn's", 4),
        ("darned undarn darn_it darn1", 0),
        ("A very bad\n day; very, bad and bad very", 1),
        ("very badly, every bad", 0),
        ("B&D b & d bd", 1),
        ("use C++ now", 1),
        ("Straße", 1),
        ("कम कमी", 1),
        ("他是坏人。", 2),
        ("ไม่ดีเลย", 1),
        ("one two, one two three, three", 1),
        ("nothing here", 0),
        ("", 0),
    ],
)
def test_how_many(text, count):
    assert WORDS.count(text, 100) == count
    assert WORDS.count(text, 100) == count  # from memory
    assert WORDS.count(text, 1) == min(count, 1)


def test_counting_ends_where_there_are_enough():
    assert WORDS.count("darn 坏 " * 10, 15) == 15
    assert WORDS.count("darn 坏 " * 10, 25) == 20


def test_no_entries_find_nothing():
    assert BadWords([]).count("darn 坏", 5) == 0


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("fox.data.filters.bad_words.REMEMBERED", 10)
    words = BadWords(["w7", "w8 w9"])
    text = " ".join(f"w{number}" for number in range(100)) + " " + "x" * 1000
    assert words.count(text, 9) == words.count(text, 9) == 2
    assert len(words._known) <= 10 and "x" * 1000 not in words._known


@pytest.mark.parametrize("line", ["!!!", "* *", "\u200b"])
def test_a_line_without_a_word_is_refused(line):
    with pytest.raises(ValueError, match="has no letter or digit"):
        bad_word(line)
