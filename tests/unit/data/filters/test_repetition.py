"""Gopher's repetition rules: each threshold from both sides, and the quick way beside the plain one."""

from collections import Counter
from collections.abc import Iterator
from itertools import product
from random import Random
from string import ascii_lowercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.data.filters.page import Page
from fox.data.filters.repetition import MAX_REPEATED, MAX_TOP, _Runs, fault, repeated_parts


def new_words(letters: int) -> Iterator[str]:
    return map("".join, product(ascii_lowercase, repeat=letters))


def filled(words: list[str], size: int, separator: str = " ") -> str:
    """A text of so many characters that begins with these words, and goes on with others that come once."""
    text, fresh = separator.join(words), new_words(5)
    while len(text) < size - 20:
        text += f"{separator}{next(fresh)}"
    return f"{text}{separator}{'z' * (size - len(text) - len(separator))}"


def apart(runs: list[list[str]]) -> list[str]:
    fresh = new_words(4)
    return [word for run in runs for word in (*run, next(fresh))]


@pytest.mark.parametrize(("length", "share"), MAX_TOP.items())
def test_the_run_that_comes_most_often(length, share):
    run = ["a" * (45 - 2 * length), *"bcd"][:length]
    times = round(100 * share)
    words, size = apart([run] * times), 100 * len(" ".join(run))
    assert fault(Page(filled(words, size))) == ""
    assert fault(Page(filled(words, size - 1))) == f"one run of {length} words again and again"


@pytest.mark.parametrize(("length", "share"), MAX_REPEATED.items())
def test_runs_that_were_there_before(length, share):
    fresh = new_words(2)
    runs = [[next(fresh) for _ in range(length)] for _ in range(round(100 * share))]
    words, size = apart(runs + runs), 200 * length
    assert fault(Page(filled(words, size))) == ""
    assert fault(Page(filled(words, size - 1))) == f"repeated runs of {length} words"


@pytest.mark.parametrize(("separator", "name"), [("\n", "lines"), ("\n\n\n", "paragraphs")])
def test_parts_that_come_twice(separator, name):
    fresh = new_words(5)
    parts = [" ".join(next(fresh) for _ in range(50)) for _ in range(6)]
    assert fault(Page(separator.join([*parts, *"aaaa"]))) == ""
    assert fault(Page(separator.join([*parts[:5], *"aaaaa"]))) == f"repeated {name}"


@pytest.mark.parametrize(("separator", "name"), [("\n", "lines"), ("\n\n", "paragraphs")])
def test_characters_of_parts_that_come_twice(separator, name):
    fresh = new_words(4)
    words = [next(fresh) for _ in range(70)]
    words[10] = words[20] = "x" * 200
    text = filled(words, 1000, separator)
    assert len(text) == 1000
    assert fault(Page(text)) == ""
    assert fault(Page(text[:-1])) == f"repeated {name}"


def test_repeated_parts():
    assert repeated_parts(["aa", "b", "aa", "", "aa"]) == (2, 4)
    assert repeated_parts([]) == (0, 0)


def plain_fault(page: Page) -> str:
    """The rules about runs of words, as one would write them down."""
    size, words = len(page.text), page.words
    for length, share in MAX_TOP.items():
        runs = Counter(" ".join(words[place : place + length]) for place in range(len(words) - length + 1))
        if runs:
            run, times = runs.most_common(1)[0]
            if len(run) * times > share * size:
                return f"one run of {length} words again and again"
    for length, share in MAX_REPEATED.items():
        if plain_repeated(words, length) > share * size:
            return f"repeated runs of {length} words"
    return ""


def plain_repeated(words: list[str], length: int) -> int:
    seen, place, characters = set(), 0, 0
    while place <= len(words) - length:
        run = tuple(words[place : place + length])
        if run in seen:
            characters += sum(map(len, run))
            place += length
        else:
            seen.add(run)
            place += 1
    return characters


@pytest.mark.parametrize("seed", range(5))
def test_the_quick_way_in_long_texts(seed):
    draw = Random(seed)
    runs = [[draw.randrange(10**6) for _ in range(draw.randrange(3, 14))] for _ in range(400)]
    text = " ".join(f"w{word}" for _ in range(440 + 10 * seed) for word in draw.choice(runs))
    for length in MAX_REPEATED:
        page = Page(text)
        plain = plain_repeated(page.words, length)
        assert plain > 0
        assert _Runs(page).repeated(length, 0) == plain


def spelled(words: list[int]) -> str:
    return " ".join("w" + ascii_lowercase[word % 26] * (1 + word // 5) for word in words)


@given(
    st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=8),
    st.lists(st.integers(0, 7), max_size=16),
    st.integers(0, 300),
)
def test_the_quick_way_says_what_the_plain_one_does(runs, order, others):
    words = [word for place in order for word in runs[place % len(runs)]]
    text = f"{spelled(words)} {' '.join(f'{number}x' for number in range(others))}"
    assert fault(Page(text)) == plain_fault(Page(text))
