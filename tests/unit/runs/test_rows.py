"""`rows = "auto"`: what fits and pays, told before training, and the same for a run as long as it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from fox.errors import RecipeError
from fox.plan.rows import fitted_rows, possible_rows
from fox.recipe import LoadedRecipe, load_recipe
from fox.runs.choose import Wish, with_rows_of
from fox.runs.folder import Run
from fox.runs.pipeline import do_steps
from fox.runs.rows import fit_rows, keep_rows
from fox.train import machine
from tests.journey.micro_run import write_world

RECIPES = Path(__file__).parents[3] / "recipes"
AUTO = ["stage.foundation.rows=auto", "stage.longer.rows=auto"]
QUIET = Console(quiet=True)


def small(*overrides: str) -> LoadedRecipe:
    return load_recipe(RECIPES / "small-cpu.toml", [*AUTO, *overrides])


def fitted(free_gb: float | None, threads: int | None = 4, ranks: int = 1, *overrides: str) -> int:
    recipe = small(*overrides).recipe
    free = None if free_gb is None else int(free_gb * 1e9)
    return fitted_rows(recipe, recipe.stage["foundation"], 16_384, free, False, threads, ranks)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The machine's free memory, to be changed."""
    found = {"bytes": 10**10}
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: found["bytes"])
    return found


def test_rows_divide_every_step_on_every_rank() -> None:
    stage = small("stage.foundation.batch_tokens=12288").recipe.stage["foundation"]  # 48 rows of 256
    assert possible_rows(stage) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 48]
    assert possible_rows(stage, 16) == [1, 3]
    assert possible_rows(stage, 5) == possible_rows(stage), "which is refused elsewhere"
    ramp = small("stage.foundation.batch_tokens=12288", "stage.foundation.batch_ramp={ start = 2048, tokens = 1e6 }")
    assert possible_rows(ramp.recipe.stage["foundation"]) == [1, 2, 4, 8]


def test_more_memory_never_gives_fewer_rows_up_to_what_pays() -> None:
    rows = [fitted(gb, 1000) for gb in (0.1, 1.5, 2, 3, 4, 8, 100)]
    assert rows == sorted(rows) and rows[0] == 1 and rows[-1] == 16 and len(set(rows)) > 2
    assert [fitted(None, threads) for threads in (1, 2, 4, 100)] == [4, 8, 16, 16]
    assert fitted(None, None) == 16, "a GPU takes all that fits"
    assert fitted(None, 4, 4) == 4, "four ranks share the step's 16 rows"


def test_long_chunks_have_a_row_at_least() -> None:
    recipe = small().recipe
    assert fitted_rows(recipe, recipe.stage["quality"], 16_384, 10**11, False, 1) == 1  # of 1,024 tokens
    assert fitted_rows(recipe, recipe.stage["longer"], 16_384, 10**11, False, None, 1) == 16


def test_show_says_auto_until_it_is_fitted(free: dict[str, int], tmp_path: Path) -> None:
    loaded = small()
    assert ("stage.longer.rows", "auto", "-o") in loaded.rows()
    assert ("stage.quality.rows", 8) in [row[:2] for row in loaded.rows()], "the others are as they were"
    done = fit_rows(loaded, tmp_path)
    longer = done.recipe.stage["longer"].rows
    assert longer >= 1 and 8192 % (512 * longer) == 0
    assert ("stage.longer.rows", longer, "-o (auto)") in done.rows()
    assert fit_rows(done, tmp_path) is done


def test_a_run_keeps_its_rows_when_memory_changes(free: dict[str, int], tmp_path: Path) -> None:
    first = fit_rows(small(), tmp_path)
    keep_rows(first, tmp_path)
    free["bytes"] = 10**8
    assert fit_rows(small(), tmp_path).fitted_rows == first.fitted_rows
    assert set(fit_rows(small(), tmp_path / "other").fitted_rows.values()) == {1}
    assert fit_rows(small(), tmp_path, redo="pretrain").fitted_rows == {"stage.foundation": 1, "stage.longer": 1}
    assert fit_rows(small(), tmp_path, redo="tune").fitted_rows == first.fitted_rows
    larger = small("model.num_hidden_layers=20")
    assert set(fit_rows(larger, tmp_path).fitted_rows.values()) == {1}, "another model is another matter"


@pytest.mark.parametrize("kept", ["", "[]", '{"stage.foundation": 3}', '{"stage.foundation": {"rows": "x"}}'])
def test_a_damaged_record_is_made_anew(free: dict[str, int], tmp_path: Path, kept: str) -> None:
    good = fit_rows(small(), tmp_path).fitted_rows
    (tmp_path / "rows.json").write_text(kept)
    assert fit_rows(small(), tmp_path).fitted_rows == good


def test_weights_in_bf16_take_the_step_as_one_pass() -> None:
    narrow = ["train.precision=bf16-weights"]
    loaded = load_recipe(RECIPES / "small-cpu.toml", [*narrow, *(f"{key}.rows=auto" for key in (
        "stage.foundation", "stage.longer", "stage.quality", "tune"))])  # fmt: skip
    assert [stage.rows for stage in loaded.recipe.stage.values()] == [16, 16, 8]
    assert loaded.auto_rows == ()


@pytest.mark.parametrize("rows", ["atuo", "0", "1.5", "true"])
def test_what_is_neither_a_number_nor_auto_is_refused(rows: str) -> None:
    with pytest.raises(RecipeError, match=r"stage.longer.rows = .*About rows: .*`.auto.`"):
        load_recipe(RECIPES / "small-cpu.toml", [f"stage.longer.rows={rows}"])


def test_a_batch_that_no_row_divides_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stage.longer.batch_tokens = 8000"):
        small("stage.longer.batch_tokens=8000")


def test_a_plan_tells_which_it_would_be(free: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = with_rows_of(small(), Wish(), QUIET)
    assert here.fitted_rows == fit_rows(small(), tmp_path).fitted_rows
    assert with_rows_of(small(), Wish(gpu="l4"), QUIET).fitted_rows == {"stage.foundation": 16, "stage.longer": 16}


def test_a_run_records_its_rows_and_is_done_with_less_memory(
    free: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_world(tmp_path / "world"))

    def run(folder: str) -> Run:
        loaded = load_recipe("micro.toml", ["stage.short.rows=auto", "train.max_epochs=100"])
        return do_steps(loaded, Path(folder), ["tokenizer", "data", "pretrain"], None, QUIET)

    run("auto")
    manifest = json.loads(Path("auto/manifests/pretrain.json").read_text())
    assert manifest["facts"]["rows"]["short"] == 16, "all of a step"
    before = Path("auto/manifests/pretrain.json").read_bytes()
    free["bytes"] = 10**8
    assert run("auto").recipe.stage["short"].rows == 16
    # Without the record it would be other rows: so it is the record that was read. What is done is done with those, too.
    Path("auto/rows.json").unlink()
    assert run("auto").recipe.stage["short"].rows == 1
    assert Path("auto/manifests/pretrain.json").read_bytes() == before
