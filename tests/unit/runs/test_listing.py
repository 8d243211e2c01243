"""Runs listed, compared and cleaned: from a whole made-up run, and from what is left of damaged ones."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fox.artifacts import locked
from fox.cli import app
from fox.errors import Failure, UserError
from fox.recipe.stage import Stage
from fox.runs.listing import (
    clean,
    compare_runs,
    describe_comparison,
    describe_runs,
    describe_waste,
    is_running,
    summaries,
    waste_of,
)
from tests.unit.report.made_up_run import write_whole_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs that differ in a key, one half-done, and a folder that is none."""
    folder = tmp_path / "runs"
    for name in ("one", "two", "half"):
        write_whole_run(folder / name)
    recipe = folder / "two/recipe.json"
    page = json.loads(recipe.read_text())
    page["rows"] = [[k, 0.5 if k == "optimizer.peak_learning_rate" else v, o] for k, v, o in page["rows"]]
    recipe.write_text(json.dumps(page))
    for gone in ("manifests/pretrain.json", "manifests/tune.json", "manifests/eval.json"):
        (folder / "half" / gone).unlink()
    shutil.rmtree(folder / "half/eval")
    (folder / "notes").mkdir()
    return folder


def checkpoint(run: Path, step: int, latest: bool = False) -> Path:
    folder = run / f"pretrain/checkpoints/step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"0" * 1000)
    if latest:
        (folder.parent / "latest").write_text(f"{folder.name}\n")
    return folder


def test_each_run_is_listed_with_its_steps(runs: Path) -> None:
    found = {Path(one.folder).name: one for one in summaries(runs)}
    assert set(found) == {"one", "two", "half"}
    assert set(found["one"].state.values()) == {"done"}
    assert found["half"].state["data"] == "done" and found["half"].state["pretrain"] == "stopped"
    rows = (runs / "one/pretrain/metrics.jsonl").read_text().splitlines()
    assert found["one"].tokens_done == json.loads(rows[-1])["tokens"]
    assert found["one"].loss == pytest.approx(json.loads(rows[-1])["loss"])
    assert found["one"].heldout_bits_per_byte["speeches"] > 0
    assert not found["one"].running


def test_a_list_names_the_folder_that_compare_and_clean_take(runs: Path) -> None:
    (runs / "one").rename(runs / "another")
    told = describe_runs(summaries(runs), runs)
    assert told.splitlines()[0] == f"In {runs}:"
    assert {"another, tiny", "two, tiny", "half, tiny"} < set(told.splitlines())


def test_a_list_fits_60_columns(runs: Path) -> None:
    assert [line for line in describe_runs(summaries(runs), runs).splitlines()[1:] if len(line) > 60] == []


def test_a_damaged_run_is_listed_all_the_same(runs: Path) -> None:
    (runs / "one/recipe.json").write_text("{")
    (runs / "one/pretrain/metrics.jsonl").write_text("no json\n")
    found = {Path(one.folder).name: one for one in summaries(runs)}
    assert found["one"].tokens_done == 0 and found["one"].loss is None and found["one"].notes


def test_no_runs_and_no_folder(tmp_path: Path) -> None:
    assert summaries(tmp_path / "none") == []
    assert "no runs" in describe_runs([], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no folder"):
        summaries(tmp_path / "file")


def test_comparing_tells_the_keys_that_differ_and_draws(runs: Path, tmp_path: Path) -> None:
    picture = tmp_path / "losses.png"
    compared = compare_runs([runs / "one", runs / "two"], picture)
    assert list(compared["recipe"]) == ["optimizer.peak_learning_rate"]
    assert compared["recipe"]["optimizer.peak_learning_rate"][str(runs / "two")] == 0.5
    assert compared["runs"][str(runs / "one")]["tokens_per_second"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "optimizer.peak_learning_rate" in describe_comparison(json.loads(json.dumps(compared)))


def test_comparing_takes_two(runs: Path) -> None:
    with pytest.raises(UserError, match="is one run"):
        compare_runs([runs / "one", runs / "one"], None)
    with pytest.raises(UserError, match="is not the folder of a run"):
        compare_runs([runs / "one", runs / "notes"], None)


def test_a_report_of_several_runs_is_their_comparison(runs: Path, tmp_path: Path) -> None:
    two = [str(runs / "one"), str(runs / "two")]
    report, compare = (
        CliRunner().invoke(app, words)
        for words in (["report", *two], ["runs", "compare", *two, "--picture", str(tmp_path / "other.png")])
    )
    assert report.exit_code == compare.exit_code == 0
    drawn = runs / "comparison.png"
    assert report.output == compare.output.replace(str(tmp_path / "other.png"), str(drawn))
    assert "optimizer.peak_learning_rate" in report.output
    assert drawn.read_bytes().startswith(b"\x89PNG") and not (runs / "one/report").exists()
    assert "comparison.png" not in describe_runs(summaries(runs), runs)


def test_a_report_of_one_run_has_its_own_pictures(runs: Path, tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["report", str(runs / "one"), "--picture", str(tmp_path / "other.png")])
    assert isinstance(told.exception, UserError) and "is for several runs" in str(told.exception)
    assert not (tmp_path / "other.png").exists() and not (runs / "one/report").exists()


def test_cleaning_takes_old_checkpoints_and_leftovers_and_nothing_else(runs: Path) -> None:
    run = runs / "one"
    old, second = checkpoint(run, 100), checkpoint(run, 150)
    kept, newer = checkpoint(run, 200, latest=True), checkpoint(run, 300)
    (run / ".partial-model").mkdir()
    before = {path for path in run.rglob("*") if "checkpoints" not in str(path) and ".partial" not in str(path)}
    found = waste_of(run)
    assert {waste.path for waste in found} == {old, run / ".partial-model"}
    assert old.exists(), "telling removes nothing"
    assert "nothing is removed yet" in describe_waste(run, found, removed=False)
    assert {waste.path for waste in clean(run)} == {old, run / ".partial-model"}
    assert (
        not old.exists()
        and second.exists()
        and kept.exists()
        and newer.exists()
        and not (run / ".partial-model").exists()
    )
    assert before <= set(run.rglob("*"))
    assert waste_of(run) == []


def with_train(run: Path, **values: int) -> None:
    page = json.loads((run / "recipe.json").read_text())
    page["recipe"]["train"] |= values
    (run / "recipe.json").write_text(json.dumps(page))


def test_milestones_stay(runs: Path) -> None:
    run = runs / "one"
    with_train(run, milestone_every_steps=100, keep_checkpoints=1)
    milestone, old, _ = checkpoint(run, 100), checkpoint(run, 150), checkpoint(run, 250, latest=True)
    assert [waste.path for waste in waste_of(run)] == [old] and milestone.exists()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_that_the_recipe_keeps_stay(runs: Path, keep: int) -> None:
    run = runs / "one"
    with_train(run, keep_checkpoints=keep)
    made = [checkpoint(run, step) for step in (100, 200, 300)] + [checkpoint(run, 400, latest=True)]
    checkpoint(run, 500)  # never made the latest
    assert [waste.path for waste in waste_of(run)] == made[: 4 - keep][::-1]


def test_what_is_to_be_averaged_stays_until_it_is(runs: Path) -> None:
    stages = json.loads((runs / "one/recipe.json").read_text())["recipe"]["stage"].values()
    steps = sum(Stage.model_validate(stage).steps for stage in stages)
    for name in ("one", "half"):
        with_train(runs / name, average_checkpoints=3, checkpoint_every_steps=10, keep_checkpoints=1, drift_steps=1)
    last = (steps - 1) // 10 * 10
    of_run = {
        name: [checkpoint(runs / name, step, step == steps) for step in (*range(last - 30, last + 1, 10), steps)]
        for name in ("one", "half")
    }
    assert [waste.path for waste in waste_of(runs / "half")] == of_run["half"][:1], "beside the newest other one"
    assert [waste.path for waste in waste_of(runs / "one")] == of_run["one"][3::-1]


def test_one_from_before_trouble_stays_beside_those_in_it(runs: Path) -> None:
    run = runs / "half"
    with_train(run, keep_checkpoints=1)
    old = checkpoint(run, 50)
    before, _ = [checkpoint(run, 100), checkpoint(run, 200)], checkpoint(run, 202, latest=True)
    skips = [{"event": "skip", "step": step, "reason": "a spike"} for step in (201, 202)]
    (run / "pretrain/events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in skips))
    assert [waste.path for waste in waste_of(run)] == [old], "100 is from before any drift, 200 from before the spike"
    assert all(path.exists() for path in before)
    (run / "pretrain/events.jsonl").write_text("[]\n")
    with pytest.raises(Failure, match="Put it back as it was"):
        waste_of(run)


def test_where_the_recipe_is_damaged_no_checkpoint_goes(runs: Path) -> None:
    run = runs / "one"
    checkpoint(run, 100), checkpoint(run, 200), checkpoint(run, 300, latest=True)
    assert waste_of(run)
    (run / "recipe.json").write_text("{")
    assert waste_of(run) == []


def test_where_latest_names_nothing_that_is_there_no_checkpoint_goes(runs: Path) -> None:
    checkpoint(runs / "one", 100)
    checkpoint(runs / "one", 200)
    (runs / "one/pretrain/checkpoints/latest").write_text("step-00000900\n")
    assert waste_of(runs / "one") == []


def test_a_running_run_is_seen_and_never_cleaned(runs: Path) -> None:
    run = runs / "one"
    with_train(run, keep_checkpoints=1)
    old = checkpoint(run, 100)
    checkpoint(run, 200, latest=True)
    assert not is_running(run)
    with locked(run):
        assert is_running(run)
        with pytest.raises(Failure, match="is working in this run"):
            clean(run)
    assert old.exists()
    assert not is_running(run)
    assert clean(run) and not old.exists()


def test_a_start_waits_for_those_who_only_look(runs: Path) -> None:
    with locked(runs / "one"):
        pass
    looking = os.open(runs / "one/lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH | fcntl.LOCK_NB)
    threading.Timer(0.05, os.close, [looking]).start()
    with locked(runs / "one"):
        assert is_running(runs / "one")


def test_a_link_is_not_followed(runs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".partial-mine").touch()
    (runs / "one/link").symlink_to(outside)
    assert not any(re.search("outside|link", str(waste.path)) for waste in waste_of(runs / "one"))
