"""The search for a learning rate: what is told of trials, and a whole search over the micro world's text."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fox import cli
from fox.errors import Failure, UserError
from fox.model import ModelConfig, Transformer
from fox.model.directory import save_model
from fox.model.loss import plain_summed_loss
from fox.recipe import LoadedRecipe, load_recipe
from fox.runs.data_steps import open_shards
from fox.runs.find_rate import Trial, best_of, describe_trials, find_rate, what_to_try, why_not
from fox.runs.folder import Run
from fox.runs.start import shape_of
from fox.tokenizer import Tokenizer
from fox.train import checkpoint
from fox.train.batches import make_batch
from fox.train.stages import pack
from tests.journey.micro_run import fox, kill_when, num_rows, write_world
from tests.journey.test_continue import PAGE

QUIET = Console(quiet=True)


def trial(rate: float, loss: float | None, highest: float | None = None) -> Trial:
    """Of the micro recipe, in whose vocabulary of 420 a guess costs 6.04."""
    return Trial(rate, loss, 50, 6.1, (6.1, highest or loss or 99.0))


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedRecipe:
    monkeypatch.chdir(write_world(tmp_path / "world"))
    return load_recipe("micro.toml", ["train.max_epochs=100"])


def test_the_best_is_named_and_bars_follow_the_losses(loaded: LoadedRecipe) -> None:
    told = describe_trials(
        loaded.recipe, [trial(1e-3, 5.0), trial(2e-3, 4.0), trial(4e-3, 4.5), trial(8e-3, None)], Path("runs/x")
    )
    lines = told.splitlines()
    assert "-o optimizer.peak_learning_rate=0.002" in told and lines[3].endswith("best")
    assert [line.count("█") for line in lines[2:6]] == [1, 25, 13, 0]
    assert "diverged after 50 steps" in lines[5]
    assert "may lie beyond" not in told
    assert [line for line in lines if len(line) > 80] == []


def test_at_an_end_it_says_that_a_better_one_may_lie_beyond(loaded: LoadedRecipe) -> None:
    assert "may lie beyond" in describe_trials(loaded.recipe, [trial(1e-3, 4.0), trial(2e-3, 4.5)], Path("x"))


def test_where_all_diverged_nothing_is_proposed(loaded: LoadedRecipe) -> None:
    trials = [trial(1.0, None), trial(2.0, None)]
    assert best_of(loaded.recipe, trials) is None
    assert "-o" not in describe_trials(loaded.recipe, trials, Path("x"))
    assert "lower ones: -o optimizer.peak_learning_rate=0.0625" in what_to_try(loaded.recipe, trials)


def test_neither_a_guess_nor_a_rate_above_one_that_diverged_is_recommended(loaded: LoadedRecipe) -> None:
    """A model that was blown apart guesses among all tokens, and a loss above a divergence is luck."""
    recipe = loaded.recipe
    good, blown, lucky = trial(1e-2, 5.0), trial(4e-2, None), trial(8e-2, 4.0)
    guess, late = trial(2e-2, 6.04), trial(1.6e-1, 6.04, highest=763_716.0)
    trials = [good, guess, blown, lucky, late]
    said = ["", "has learnt nothing", "diverged after 50 steps", "lies above a rate that diverged"]
    assert [why_not(recipe, trials, one) for one in trials] == [*said, "diverged, and learns nothing any more"]
    assert best_of(recipe, trials) is good
    told = describe_trials(recipe, trials, Path("x"))
    assert told.count("█") == 1 and [line for line in told.splitlines() if len(line) > 80] == []
    assert best_of(recipe, [guess]) is None and "higher ones" in what_to_try(recipe, [guess])
    assert best_of(recipe, [late]) is None and "lower ones" in what_to_try(recipe, [late])


def test_a_model_that_was_trained_before_may_end_where_it_began_and_no_higher(loaded: LoadedRecipe) -> None:
    started = loaded.recipe.model.model_copy(update={"start_from": "somebody/model"})
    recipe = loaded.recipe.model_copy(update={"model": started})
    kept, lost = Trial(1e-3, 2.6, 50, 2.5, (2.5, 2.6)), Trial(2e-3, 2.9, 50, 2.5, (2.5, 2.9))
    assert best_of(recipe, [kept, lost]) is kept
    assert best_of(recipe, [lost]) is None and best_of(loaded.recipe, [kept]) is None
    worse = Trial(4e-3, 3.0, 50, 2.5, (2.5, 3.0))
    assert "lower ones" in what_to_try(recipe, [lost, worse])


def test_too_few_tokens_are_refused_before_any_work(loaded: LoadedRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few to tell rates apart"):
        find_rate(loaded, tmp_path / "run", 3, 300, QUIET)
    assert not (tmp_path / "run").exists()


def test_a_search_ends_with_a_picture_and_is_not_done_twice(loaded: LoadedRecipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trials = find_rate(loaded, run, 3, 2560, QUIET)
    assert [one.rate for one in trials][:3] == [0.005, 0.01, 0.02]
    assert all(one.loss and one.loss < one.first_loss for one in trials)
    assert len({one.first_loss for one in trials}) == 1, "all begin with the same weights and data"
    assert (run / "find-lr/find-lr.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "find-lr").glob("rate-*/checkpoints")) == []
    rows = {path: path.stat().st_mtime_ns for path in (run / "find-lr").glob("rate-*/metrics.jsonl")}
    assert find_rate(loaded, run, 3, 2560, QUIET) == trials
    assert {path: path.stat().st_mtime_ns for path in rows} == rows, "nothing is trained again"


def test_a_rate_that_diverges_ends_early_and_is_told(loaded: LoadedRecipe, tmp_path: Path) -> None:
    wild = load_recipe("micro.toml", ["train.max_epochs=100", "optimizer.peak_learning_rate=30"])
    trials = find_rate(wild, tmp_path / "run", 3, 2560, QUIET)
    assert any(one.loss is None for one in trials)
    results = json.loads((tmp_path / "run/find-lr/results.json").read_text())
    assert [one["rate"] for one in results] == [one.rate for one in trials]


def test_where_every_rate_is_too_high_the_command_fails_and_says_so(
    loaded: LoadedRecipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest comes back from a loss of thousands to that of a guess, which is the lowest there is."""
    words = ["find-lr", "micro.toml", "--tokens", "2560", "--out", "run"]
    overrides = ["-o", "train.max_epochs=100", "-o", "optimizer.peak_learning_rate=30"]
    monkeypatch.setattr("sys.argv", ["fox", *words, *overrides])
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr()
    assert end.value.code == 1
    assert "best" not in told.out and "-o" not in told.out
    assert "None of these rates can be recommended. Try lower ones: -o optimizer.peak_learning_rate=0.469" in told.err


def test_giving_up_in_trouble_is_a_divergence(loaded: LoadedRecipe, tmp_path: Path) -> None:
    """At this rate the second step has no number any more, and training itself gives up before its row is written."""
    wild = load_recipe(
        "micro.toml", ["train.max_epochs=100", "optimizer.peak_learning_rate=1e30", "train.skips_in_a_row=1"]
    )
    trials = find_rate(wild, tmp_path / "run", 3, 2560, QUIET)
    assert [(one.loss, one.steps < 10) for one in trials] == [(None, True)] * len(trials)


def test_a_full_disk_is_told_and_no_trial_is_booked(
    loaded: LoadedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        with pytest.raises(Failure, match="the disk is full"):
            find_rate(loaded, tmp_path / "run", 3, 2560, QUIET)
    (begun,) = (tmp_path / "run/find-lr").glob("rate-*")
    assert num_rows(begun / "metrics.jsonl") >= 3, "it has losses"
    assert not (begun / "result.json").exists()
    assert all(one.loss for one in find_rate(loaded, tmp_path / "run", 3, 2560, QUIET))


def test_trials_begin_with_the_model_that_the_recipe_starts_from(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose weights are so large that its first loss is far from that of a new model's, the logarithm of its vocabulary."""
    world = write_world(tmp_path / "world")
    monkeypatch.chdir(world)
    (world / "continue.toml").write_text(PAGE)
    config = ModelConfig(
        vocab_size=tiny_tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rope_theta=20_000.0,
        rms_norm_eps=1e-5, initializer_range=0.5, tie_word_embeddings=True,
    )  # fmt: skip
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    save_model(world / "theirs", model, tiny_tokenizer)
    loaded = load_recipe("continue.toml", ["train.max_epochs=100", "stage.new.tokens=2560"], shape_of)
    run = tmp_path / "run"
    trials = find_rate(loaded, run, 3, 2560, QUIET)
    recipe, shards = loaded.recipe, open_shards(Run(run, loaded), "train", tiny_tokenizer.vocab_size)
    orders, packing = pack(recipe, recipe.stage, shards, tmp_path / "again")
    batch = make_batch(orders[0].rows_of_step(0), packing, learn_marked_only=False)
    hidden_BLD = model(batch.token_BL, batch.segment_BL)
    summed = plain_summed_loss(hidden_BLD.flatten(0, 1), model.output_weight_VD, batch.target_BL.flatten()).item()
    assert summed / batch.num_targets > math.log(tiny_tokenizer.vocab_size) + 1
    assert [one.first_loss for one in trials] == pytest.approx([summed / batch.num_targets] * len(trials), rel=1e-4)


@pytest.mark.slow
def test_a_search_that_is_killed_in_a_trial_goes_on_within_it(tmp_path: Path) -> None:
    """The second rate is killed between two of its checkpoints, and its curve is that of a search that nobody disturbed."""
    world = write_world(tmp_path / "world")
    words = (
        "find-lr",
        "micro.toml",
        "--rates",
        "3",
        "-o",
        "train.max_epochs=100",
        "-o",
        "train.checkpoint_every_steps=3",
    )

    def second_trial_is_in_its_middle() -> bool:
        begun = sorted((world / "killed/find-lr").glob("rate-*"), key=lambda path: path.stat().st_ctime_ns)
        return (
            len(begun) == 2
            and (begun[-1] / "checkpoints/latest").exists()
            and num_rows(begun[-1] / "metrics.jsonl") >= 5
        )

    told = kill_when(second_trial_is_in_its_middle, world, *words, "--out", "killed")
    assert told[0] == -signal.SIGKILL, told
    (half,) = [path for path in (world / "killed/find-lr").glob("rate-*") if not (path / "result.json").exists()]
    rows = num_rows(half / "metrics.jsonl")
    assert 5 <= rows < 10
    fox(world, *words, "--out", "killed")
    fox(world, *words, "--out", "quiet")
    killed, quiet = (json.loads((world / name / "find-lr/results.json").read_text()) for name in ("killed", "quiet"))
    assert killed == quiet and len(killed) >= 3
    steps = [json.loads(line)["step"] for line in (half / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 11)), "steps that were done again count once"
