"""What a time buys: formulas against the papers' own figures, and proposals that are recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fox.errors import RecipeError, UserError
from fox.plan import plan
from fox.plan.budget import (
    FEWEST_STEPS,
    Proposal,
    deepseek_learning_rate,
    expected_loss,
    propose,
    seconds_of,
    step_law_batch_tokens,
    step_law_learning_rate,
    worth_of,
)
from fox.plan.describe_budget import describe_proposal
from fox.plan.fits import PROCESS_BYTES, step_memory
from fox.plan.room import Room
from fox.plan.rows import FILLED_FRACTION
from fox.plan.starter import starter_recipe
from fox.recipe import Recipe, load_recipe
from fox.recipe.write import toml_page

RECIPES = Path(__file__).parents[2] / "recipes"
FLOPS = 200e9  # of a made-up machine, in each second


def speed_of(recipe: Recipe) -> Mapping[str, float]:
    return {stage.key: FLOPS / stage.flops_per_token for stage in plan(recipe).stages}


def proposed(budget: str, base: Recipe | None = None, train_tokens: Mapping[str, int] | None = None) -> Proposal:
    return propose(base or load_recipe(RECIPES / "small-cpu.toml").recipe, seconds_of(budget), speed_of, train_tokens)


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28_800), ("90m", 5400), ("1.5 d", 129_600), ("45S", 45)])
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8", "has no unit"),
        ("0h", "no time at all"),
        ("", "is no time"),
        ("-3h", "is no time"),
        ("3y", "unknown unit y"),
    ],
)
def test_what_is_no_time_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        seconds_of(text)


def test_the_fits_give_what_the_papers_print() -> None:
    # Besiroglu et al., section 4: Chinchilla's own 70 B on 1.4 T is near the optimum of its 5.76e23 FLOP, at about 20 tokens a parameter.
    flops = 5.76e23
    best = min((10**e for e in [9 + n / 200 for n in range(600)]), key=lambda n: expected_loss(n, flops / 6 / n))
    assert 12 < flops / 6 / best / best < 35
    # Step Law for 1 B on 100 B tokens, and DeepSeek LLM's figure for 7 B on 2 T (4.2e-4, table 2).
    assert step_law_learning_rate(1e9, 100e9) == pytest.approx(1.63e-3, rel=0.02)
    assert step_law_batch_tokens(100e9) == pytest.approx(1.11e6, rel=0.02)
    assert deepseek_learning_rate(8.4e22 * 1.05) == pytest.approx(4.2e-4, rel=0.05)


def test_text_read_again_is_worth_less_and_less() -> None:
    assert worth_of(5e6, None) == worth_of(5e6, 9e6) == 5e6
    assert 3.7e6 < worth_of(4e6, 1e6) < 4e6  # "up to 4 epochs is nearly as good as new"
    assert worth_of(1e9, 1e6) < 16.5e6


def test_a_longer_time_buys_a_larger_model_and_more_tokens() -> None:
    short, long = proposed("1h"), proposed("64h")
    assert long.parameters > 2 * short.parameters and long.tokens > 2 * short.tokens


def test_the_proposal_is_the_best_of_its_neighbours_and_takes_the_time() -> None:
    made = proposed("8h")
    assert all(loss >= made.expected_loss for _, _, loss in made.alternatives)
    seconds = sum(stage.tokens / speed_of(made.recipe)[stage.key] for stage in plan(made.recipe).stages)
    assert seconds == pytest.approx(0.9 * 8 * 3600, rel=0.03)


def test_a_machine_that_is_slow_with_large_models_gets_a_smaller_one() -> None:
    def slower(recipe: Recipe) -> Mapping[str, float]:
        return {key: rate / (recipe.model.hidden_size / 100) for key, rate in speed_of(recipe).items()}

    base = load_recipe(RECIPES / "small-cpu.toml").recipe
    assert propose(base, 3e5, slower, None).parameters < propose(base, 3e5, speed_of, None).parameters


@pytest.mark.parametrize("name", ["tiny", "small-cpu", "fox-1-1.6b", "starter"])
@pytest.mark.parametrize("budget", ["20m", "8h", "30d"])
def test_what_it_writes_loads_and_plans(tmp_path: Path, name: str, budget: str) -> None:
    base = starter_recipe() if name == "starter" else load_recipe(RECIPES / f"{name}.toml").recipe
    made = proposed(budget, base)
    page = tmp_path / "made.toml"
    page.write_text(toml_page(made.recipe.model_dump()), encoding="utf-8")
    recipe = load_recipe(page).recipe
    assert recipe == made.recipe
    told = plan(recipe)
    assert told.problems == ()
    assert told.parameters.total == made.parameters
    assert sum(stage.steps for stage in told.stages) >= FEWEST_STEPS / 2
    assert [line for line in describe_proposal(made, budget, False).splitlines() if len(line) > 80] == []


def test_the_changes_make_the_same_recipe_of_the_base() -> None:
    made = proposed("8h")
    words = describe_proposal(made, "8h", True)
    overrides = [line.split("-o ", 1)[1].strip("'") for line in words.splitlines() if line.startswith("  -o ")]
    assert load_recipe(RECIPES / "small-cpu.toml", overrides).recipe == made.recipe


@pytest.mark.parametrize("budget", ["10m", "2h", "3d"])
def test_a_ramp_of_the_steps_keeps_its_shares(budget: str) -> None:
    words = ["stage.longer.batch_tokens=64e3", "stage.longer.batch_ramp={start=32e3, tokens=2e6}"]
    base = load_recipe(
        RECIPES / "small-cpu.toml", [*words, "stage.longer.chunk_length=1000", "stage.longer.rows=8"]
    ).recipe
    before, stage = base.stage["longer"], proposed(budget, base).recipe.stage["longer"]
    assert before.batch_ramp and stage.batch_ramp
    one_pass = stage.rows * stage.row_length
    assert abs(stage.batch_ramp.start - stage.batch_tokens / 2) <= one_pass / 2
    assert stage.batch_ramp.tokens / stage.tokens == pytest.approx(before.batch_ramp.tokens / before.tokens, rel=0.05)


def test_too_little_text_is_told() -> None:
    tokens = {"wikipedia": 12_900_000, "books": 7_600_000, "dialogues": 4_000_000, "instructions": 4_000_000}
    made = proposed("8h", train_tokens=tokens)
    if made.tokens > 100e6:
        assert any("wikipedia" in note and "would be read" in note for note in made.notes)
    assert made.worth_tokens < made.tokens
    plenty = {name: 10**12 for name in tokens}
    assert not any("would be read" in note for note in proposed("8h", train_tokens=plenty).notes)


def test_outside_of_its_range_a_fit_says_so() -> None:
    made = proposed("8h")
    assert sum("this is outside" in note for note in made.notes) == 2
    assert made.learning_rate == min(made.fitted_learning_rates)


def small_cpu(**sections: dict[str, Any]) -> Recipe:
    page = load_recipe(RECIPES / "small-cpu.toml").recipe.model_dump()
    for section, values in sections.items():
        page[section] |= values
    return Recipe.model_validate(page)


@pytest.mark.parametrize("budget", ["20m", "8h", "30d"])
def test_a_model_that_is_started_from_keeps_its_size_and_the_rate_is_left_alone(budget: str) -> None:
    base = small_cpu(model={"start_from": "somebody/model"})
    made = proposed(budget, base)
    assert made.recipe.model == base.model
    assert made.recipe.optimizer == base.optimizer and made.learning_rate == base.optimizer.peak_learning_rate
    assert base.tune and made.recipe.tune and made.recipe.tune.optimizer == base.tune.optimizer
    assert not made.alternatives and any("its size stays" in note for note in made.notes)
    seconds = sum(stage.tokens / speed_of(made.recipe)[stage.key] for stage in plan(made.recipe).stages)
    assert seconds == pytest.approx(0.9 * seconds_of(budget), rel=0.05)
    page = describe_proposal(made, budget, True)
    assert "Beside it" not in page and "-o model." not in page


def test_a_proposal_that_contradicts_itself_is_refused() -> None:
    base = small_cpu(train={"average_checkpoints": 40})
    with pytest.raises(RecipeError, match=r"as proposed:  train\.average_checkpoints = 40: are more than the \d+ that"):
        proposed("20m", base)
    assert proposed("20m", small_cpu(train={"average_checkpoints": 40, "checkpoint_every_steps": 1})).tokens


def test_in_bf16_alone_a_step_is_one_pass() -> None:
    made = proposed("30d", small_cpu(train={"precision": "bf16-weights"}))
    assert all(stage.batch_tokens <= stage.rows * stage.row_length for stage in made.recipe.stage.values())


@pytest.mark.parametrize("budget", ["1s", "0.001m"])
def test_too_short_a_time_is_refused_with_one_that_would_do(budget: str) -> None:
    with pytest.raises(UserError, match=r"too short.*Give --budget \d+m or more"):
        proposed(budget)


def needed(made: Proposal) -> int:
    """Bytes of the fullest step of a proposed recipe, its rows as they are proposed."""
    stages = [*made.recipe.stage.values(), *([made.recipe.tune] if made.recipe.tune else [])]
    vocab_size = made.recipe.tokenizer.vocab_size
    return PROCESS_BYTES + max(step_memory(made.recipe, stage, vocab_size, True).total for stage in stages)


@pytest.mark.parametrize("free_gb", [4, 8])
def test_what_memory_has_no_room_for_is_not_proposed_and_both_figures_are_told(free_gb: int) -> None:
    base, seconds = load_recipe(RECIPES / "small-cpu.toml").recipe, seconds_of("3000d")
    by_time = propose(base, seconds, speed_of, None)
    made = propose(base, seconds, speed_of, None, Room(free_gb * 10**9))
    assert needed(made) <= FILLED_FRACTION * free_gb * 1e9 < needed(by_time)
    assert all(parameters < by_time.parameters for parameters, _, _ in made.alternatives)
    (note,) = [note for note in made.notes if "By the time alone" in note]
    (millions,) = re.findall(r"a model of ([\d,]+) M parameters", note)
    assert int(millions.replace(",", "")) == pytest.approx(by_time.parameters / 1e6, rel=0.3)
    assert f"and {FILLED_FRACTION * free_gb:.1f} GB may be filled" in note
    enough = propose(base, seconds, speed_of, None, Room(10**12))
    assert enough == by_time and not any("By the time alone" in note for note in enough.notes)


def test_rows_are_as_many_as_fit_and_steps_stay_whole_passes() -> None:
    base = load_recipe(RECIPES / "small-cpu.toml").recipe
    by_time, made = (propose(base, 30 * 86_400, speed_of, None, Room(gb * 10**9)) for gb in (100, 5))
    assert needed(made) <= FILLED_FRACTION * 5e9 < needed(by_time) and made.parameters == by_time.parameters
    rows = [[stage.rows for stage in one.recipe.stage.values()] for one in (made, by_time)]
    assert all(few <= many for few, many in zip(*rows, strict=True)) and rows[0] != rows[1]
    assert plan(made.recipe).problems == ()


@pytest.mark.parametrize(("start_from", "which"), [(None, "even the smallest model"), ("somebody/model", "the model")])
def test_memory_that_has_room_for_none_is_told(start_from: str | None, which: str) -> None:
    with pytest.raises(UserError, match=rf"a step of {which}.* takes .* GB .* and 0\.1 GB of memory may be filled"):
        propose(small_cpu(model={"start_from": start_from}), 28_800, speed_of, None, Room(10**8))
