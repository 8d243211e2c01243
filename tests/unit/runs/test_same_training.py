"""A training goes on as what it was begun as, or it is told of all that has changed, and nothing in its run is."""

from __future__ import annotations

import pytest

from fox.artifacts import sha256_of
from fox.errors import RecipeError, UserError
from fox.runs.inspect import inspect_step
from fox.runs.pipeline import do_steps
from tests.unit.runs.killed_run import QUIET, RUN, go_on, recipe

pytestmark = pytest.mark.usefixtures("in_killed")


def contents() -> dict[str, str]:
    """All that is in the run, but for who holds it."""
    files = (path for path in RUN.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): sha256_of(path) for path in files}


@pytest.mark.parametrize("key", ["stage.longer.mix.text=0.5", "stage.short.batch_tokens=512", "optimizer.eps=1e-7"])
def test_a_refused_training_changes_nothing(key: str) -> None:
    before, told = contents(), list(inspect_step(RUN, 12, 4))
    assert (RUN / "rows.json").is_file() and (RUN / "pretrain/checkpoints/latest").is_file()
    with pytest.raises(RecipeError, match=rf"{key.partition('=')[0]} = .* when this run began"):
        go_on(key)
    assert contents() == before
    assert list(inspect_step(RUN, 12, 4)) == told


def test_all_that_has_changed_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        go_on("optimizer.peak_learning_rate=0.02", "tokenizer.vocab_size=421", "data.heldout_fraction=0.2")
    told = {problem.key: str(problem) for problem in error.value.problems}
    assert list(told) == ["data.heldout_fraction", "tokenizer.vocab_size", "optimizer.peak_learning_rate"]
    assert "was 0.1 when `tokenizer` was done" in told["data.heldout_fraction"]
    assert "was 420 when `tokenizer` was done" in told["tokenizer.vocab_size"]
    assert "was 0.01 when this run began" in told["optimizer.peak_learning_rate"]


def test_a_command_that_trains_nothing_does_not_look_at_what_was_begun() -> None:
    with pytest.raises(RecipeError) as error:
        do_steps(recipe("optimizer.eps=1e-7", "tokenizer.vocab_size=421"), RUN, ["data"], None, QUIET)
    assert [problem.key for problem in error.value.problems] == ["tokenizer.vocab_size"]


def test_a_lowered_limit_of_epochs_holds_as_at_the_start() -> None:
    before = contents()
    with pytest.raises(UserError, match=r"train.max_epochs = 0.2: source \w+ has \d+ tokens, and would be seen about"):
        go_on("train.max_epochs=0.2")
    assert contents() == before
