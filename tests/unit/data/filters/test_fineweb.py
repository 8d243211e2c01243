"""FineWeb's rules at, just within and just beyond each threshold."""

import pytest

from fox.data.filters.fineweb import fault
from fox.data.filters.page import Page


def lines(*parts: tuple[str, int]) -> str:
    """So many lines of each, no two the same."""
    made = [f"{number:03} {line}" for line, times in parts for number in range(times)]
    return "\n".join(f"{line[:3]}{place:03}{line[3:]}" for place, line in enumerate(made))


LONG = "is a line of some more words than thirty characters have"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (lines((f"{LONG}.", 3), (LONG, 22)), ""),
        (lines((f"{LONG}.", 2), (LONG, 23)), "lines without punctuation"),
        (lines((f"{LONG}।", 2), (f"{LONG}？", 1), (LONG, 22)), ""),
        (lines(("no more than 30 signs.", 67), (f"{LONG}.", 33)), ""),
        (lines(("no more than 30 signs.", 68), (f"{LONG}.", 32)), "short lines"),
        (lines(("there are 31 signs here.", 100)), ""),
        ("", "no line"),
        (" \n\n", "no line"),
    ],
)
def test_each_threshold(text, reason):
    assert fault(Page(text)) == reason


def test_a_short_line_to_the_last_character():
    long = "\n".join(f"{LONG} {number} so it is." for number in range(30))
    short = [f"{number:02} a line of thirty signs{'s' * 4}." for number in range(70)]
    assert {len(line) for line in short} == {30}
    assert fault(Page("\n".join([*short, long]))) == "short lines"
    assert fault(Page("\n".join([*(f"{line}." for line in short), long]))) == ""


def test_characters_of_repeated_lines_to_the_last():
    kept = f"ab.\n{'x ' * 146}x.\nab."  # 3 of 300 characters
    assert fault(Page(kept)) == ""
    assert fault(Page(kept.replace("x ", "", 1))) == "repeated lines"


def test_lines_per_word_to_the_last():
    text = "\n".join([f"{letter * 30} be." for letter in "abc"] + ["d" * 30])  # 3 ends and 10 words
    assert fault(Page(text)) == ""
    assert fault(Page(f"{text}\n")) == "few words a line"
    assert fault(Page(text.replace(" be", "", 1))) == "few words a line"
