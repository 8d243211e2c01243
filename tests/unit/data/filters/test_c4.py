"""C4's rules: which lines are cut, which pages dropped, and what is told of it."""

import pytest

from fox.data.filters.c4 import clean
from fox.data.filters.sentences import sentences_in

GOOD = "One is here. Two is here. Three is here. Four is here. Five is here."


def test_a_good_page_stays_as_it_is():
    assert clean(GOOD) == (GOOD, "", {})


@pytest.mark.parametrize("line", ["It ends so!", "It ends so?", 'It "ends so"', "It ends 'so'", "It “ends so.”", "So it ends。", "我们都是中国人。"])  # fmt: skip
def test_a_line_that_ends_a_sentence_stays(line):
    assert clean(f"{GOOD}\n{line}") == (f"{GOOD}\n{line}", "", {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("It does not end so", "no end of a sentence"),
        ("It goes on...", "no end of a sentence"),
        ("It goes on:", "no end of a sentence"),
        ("Two words.", "fewer than 3 words"),
        ("我们。", "fewer than 3 words"),
        (f"It is {'x' * 1001} so.", "a word of more than 1000 characters"),
        ("Please enable JavaScript now.", "JavaScript"),
        ("We have Terms of Use here.", "cookies and terms of use"),
        ("This site USES COOKIES daily.", "cookies and terms of use"),
    ],
)
def test_a_line_that_is_cut_is_counted_in_bytes(line, reason):
    assert clean(f"{line}\n{GOOD}\n{line}\nIt is good.") == (
        f"{GOOD}\nIt is good.",
        "",
        {reason: 2 * len(f"{line}\n".encode())},
    )


def test_three_words_and_a_thousand_characters_are_enough():
    text = f"{GOOD}\nIt is so.\nIt is {'x' * 999}."
    assert clean(text) == (text, "", {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{GOOD}\nHere is Lorem Ipsum again.", "lorem ipsum"),
        (f"{GOOD}\nif (x) {{ y; }} is it.", "a curly bracket"),
        ("One is here. Two is here. Three is here. Four is here.", "fewer than 5 sentences"),
        (f"{GOOD[:-1]}", "fewer than 5 sentences"),
        ("", "fewer than 5 sentences"),
    ],
)
def test_a_page_that_is_dropped_is_given_back_as_it_was(text, reason):
    assert clean(text) == (text, reason, {})


def test_what_stands_in_a_line_that_is_cut_drops_no_page():
    assert clean(f"{GOOD}\nlorem ipsum {{").text == GOOD


def test_citations_and_space_are_cut_and_counted():
    text = f"  {GOOD}  \n\n\nIt was so.[12] It is so now. [citation needed]\nIt is [34] so.[edit]"
    left = f"{GOOD}\nIt was so. It is so now.\nIt is [34] so.".replace("[34]", "")
    assert clean(text) == (left, "", {"citations and space around lines": len(text) - len(left)})


def test_all_bytes_are_accounted_for():
    text = f"Menü\n{GOOD}\n\n Größe\nÄh, so ist es. \r\nWe use cookies.\n"
    left, _, cut = clean(text)
    assert len(left.encode()) + cut.total() == len(text.encode())


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("One", 1),
        ("One. Two. Three", 3),
        ("Mr. Smith met Dr. Jones in the U.S. on 3.5.", 1),
        ("He said: “No!” “Why?” So it was.", 3),
        ("What?! No...", 2),
        ("我们。你们！他们", 3),
        ("... . !", 1),
    ],
)
def test_sentences(line, count):
    assert sentences_in(line, 9) == count
    assert sentences_in(line, 2) == min(count, 2)
