"""What a reader is told, and that it survives the way from a worker process."""

from __future__ import annotations

import datetime
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from fox.errors import Failure, FoxError, Problem, RecipeError, UserError, shorten

TWO = [Problem("a", "is missing", "Add it."), Problem("b", "is too long", "", "x" * 10, "page.toml:3")]


def test_a_problem_says_place_key_value_reason_and_mend() -> None:
    assert str(TWO[0]) == "a: is missing. Add it."
    assert str(TWO[1]) == "page.toml:3  b = 'xxxxxxxxxx': is too long."
    assert str(Problem("c", "must be true or false", "", False, "-o")) == "-o  c = false: must be true or false."


def test_a_mistake_of_the_users_ends_with_2_and_the_worlds_with_1() -> None:
    assert (UserError("a", problem="is wrong").exit_code, RecipeError(TWO).exit_code) == (2, 2)
    assert (Failure("the disk is full").exit_code, FoxError().exit_code) == (1, 1)


def test_a_recipe_error_says_all_at_once() -> None:
    assert str(RecipeError(TWO)).splitlines() == [str(problem) for problem in TWO]


@pytest.mark.parametrize(
    "error",
    [UserError("a", 5, problem="is wrong", mend="Mend it.", place="page.toml:1"), RecipeError(TWO), Failure("full")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_whole_from_a_worker_process(error: FoxError) -> None:
    """A RecipeError once came back with each letter of its text as a problem, and a UserError broke the pool."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(type(error)) as told:
        pool.submit(fail, error).result()
    assert (str(told.value), getattr(told.value, "problems", [])) == (str(error), getattr(error, "problems", []))


def fail(error: FoxError) -> None:
    raise error


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("it's", '"it\'s"'),
        ("a\n\x1b[31m\u202e", "'a\\n\\x1b[31m\\u202e'"),
        (True, "true"),
        (2e6, "2000000.0"),
        ({"text": 1, "chat": [True, {}]}, "{ text = 1, chat = [true, {}] }"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (datetime.time(7, 32), "07:32:00"),
        ("x" * 200, "'" + "x" * 79 + " … " + "x" * 39 + "'"),
    ],
)
def test_a_value_is_shown_as_a_recipe_has_it(value: object, shown: str) -> None:
    assert shorten(value) == shown
    assert "\n" not in shorten(value)


def test_a_number_that_python_will_not_print_is_shown_all_the_same() -> None:
    assert shorten(1 << 100_000) == "a number of 100001 bits"
