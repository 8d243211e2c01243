"""A run that is killed, at whatever point, or that finds its disk full, goes on as if nothing had been."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fox.artifacts import PARTIAL, sha256_of
from tests.journey.micro_run import STAGE_ENDS, STEPS, essence, fox, kill_when, leftovers, num_rows, trained

PRETRAIN = ("pretrain", "micro.toml")
RUN = "runs/micro"


def rows_reach(folder: Path, rows: int, step: str = "pretrain") -> Callable[[], bool]:
    return lambda: num_rows(folder / f"runs/micro/{step}/metrics.jsonl") >= rows


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "pretrain/metrics.jsonl").read_text().splitlines()]


def writes_a_checkpoint(folder: Path) -> Callable[[], bool]:
    checkpoints = folder / "runs/micro/pretrain/checkpoints"
    return lambda: any(checkpoints.glob(f"{PARTIAL}*"))


def scores_held_out_text(folder: Path, step: int) -> Callable[[], bool]:
    pretrain = folder / "runs/micro/pretrain"
    saved, scored = pretrain / f"checkpoints/step-{step:08d}", pretrain / f"heldout/{STAGE_ENDS[step]}.json"
    return lambda: saved.exists() and not scored.exists()


def test_killed_again_and_again_at_steps_of_every_stage(untrained: Path, finished: Path) -> None:
    for rows in (7, 11):  # between two checkpoints, and just after a stage's end
        code, _ = kill_when(rows_reach(untrained, rows), untrained, *PRETRAIN)
        assert code == -9
    fox(untrained, *PRETRAIN)
    assert trained(untrained / RUN) == trained(finished / RUN)
    assert leftovers(untrained / RUN) == []
    manifest = json.loads((untrained / RUN / "manifests/pretrain.json").read_text())
    rows = (untrained / RUN / "pretrain/metrics.jsonl").read_text().splitlines()
    of_all_three_processes = json.loads(rows[-1])["seconds"]
    assert manifest["seconds"] == pytest.approx(of_all_three_processes, abs=0.051)  # both are rounded


@pytest.mark.slow
def test_killed_again_and_again_while_it_writes_checkpoints(untrained: Path, finished: Path) -> None:
    halves = kills = 0
    while not halves and kills < 4:
        kills += 1
        kill_when(writes_a_checkpoint(untrained), untrained, *PRETRAIN)
        halves += len(leftovers(untrained / RUN))
    assert halves, "no kill met a checkpoint half-written"
    fox(untrained, *PRETRAIN)
    assert trained(untrained / RUN) == trained(finished / RUN)
    assert leftovers(untrained / RUN) == []


@pytest.mark.slow
def test_killed_while_it_scores_held_out_text_after_a_stage(untrained: Path, finished: Path) -> None:
    for step in (10, STEPS):
        reached = scores_held_out_text(untrained, step)
        code, _ = kill_when(reached, untrained, *PRETRAIN)
        assert code == -9 and reached(), "the kill came too late"
        assert num_rows(untrained / RUN / "pretrain/metrics.jsonl") == step
    fox(untrained, *PRETRAIN)
    assert trained(untrained / RUN) == trained(finished / RUN)


def test_sigterm_saves_the_step_under_way_and_ends_with_75(untrained: Path, finished: Path) -> None:
    code, told = kill_when(rows_reach(untrained, 4), untrained, *PRETRAIN, sent=signal.SIGTERM)
    step = num_rows(untrained / RUN / "pretrain/metrics.jsonl")
    assert code == 75 and f"saved a checkpoint of step {step}, and the same command goes on" in told
    assert json.loads((untrained / RUN / "outcome.json").read_text())["exit_code"] == 75
    assert (untrained / RUN / "pretrain/checkpoints/latest").read_text() == f"step-{step:08d}\n"
    assert not (untrained / RUN / "manifests/pretrain.json").exists()
    assert leftovers(untrained / RUN) == []
    fox(untrained, *PRETRAIN)
    assert trained(untrained / RUN) == trained(finished / RUN)
    assert json.loads((untrained / RUN / "outcome.json").read_text())["exit_code"] == 0
    events = [json.loads(line) for line in (untrained / RUN / "pretrain/events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["step"]) for event in events] == [("stopped", step), ("went on", step)]


def test_goes_on_with_other_rows_and_says_so(untrained: Path, finished: Path) -> None:
    kill_when(rows_reach(untrained, 4), untrained, *PRETRAIN, sent=signal.SIGTERM)
    step = num_rows(untrained / RUN / "pretrain/metrics.jsonl")
    _, told = fox(untrained, *PRETRAIN, "-o", "stage.short.rows=4", "-o", "stage.last.rows=2")
    assert "going on with stage.last.rows = 2 (was 4), stage.short.rows = 4 (was 8): the same training, but" in told
    mine, theirs = (metrics(folder / RUN) for folder in (untrained, finished))
    assert len(mine) == STEPS and [row["mix"] for row in mine] == [row["mix"] for row in theirs]
    assert [row["loss"] for row in mine[:step]] == [row["loss"] for row in theirs[:step]]
    assert [row["loss"] for row in mine[step:]] == pytest.approx([row["loss"] for row in theirs[step:]], rel=1e-3)
    assert any("changed" in line for line in (untrained / RUN / "pretrain/events.jsonl").read_text().splitlines())
    before = trained(untrained / RUN)
    fox(untrained, *PRETRAIN)  # done, with whatever rows
    assert trained(untrained / RUN) == before


@pytest.mark.parametrize(("step", "before"), [("tokenizer", []), ("data", ["tokenizer"])])
def test_sigterm_where_nothing_is_trained_ends_with_75_and_leaves_nothing_half_made(
    world: Path, step: str, before: list[str]
) -> None:
    story = (world / "text/000.txt").read_text()
    (world / "text/long.txt").write_text(
        "".join(f"{story}{number}\n" for number in range(20_000))
    )  # some seconds' work
    for earlier in before:
        fox(world, earlier, "micro.toml")
    run = world / RUN
    begun = (lambda: bool(leftovers(run))) if step == "data" else (run / "inventory.json").exists
    code, told = kill_when(begun, world, step, "micro.toml", sent=signal.SIGTERM)
    assert code == 75 and "stopped: asked to end (SIGTERM)" in told and "Traceback" not in told
    assert json.loads((run / "outcome.json").read_text())["exit_code"] == 75
    assert not (run / f"manifests/{step}.json").exists() and leftovers(run) == []


@pytest.mark.slow
def test_killed_while_it_tunes(untuned: Path, finished: Path) -> None:
    code, _ = kill_when(rows_reach(untuned, 4, "tune"), untuned, "tune", "micro.toml")
    assert code == -9
    fox(untuned, "tune", "micro.toml")
    assert trained(untuned / RUN, "tune") == trained(finished / RUN, "tune")


@pytest.mark.slow
def test_the_comparison_notices_tensors_of_another_step(untrained: Path, finished: Path) -> None:
    kill_when(rows_reach(untrained, 8), untrained, *PRETRAIN)
    *_, older, newest = sorted((untrained / RUN / "pretrain/checkpoints").glob("step-*"))
    state = json.loads((newest / "state.json").read_text())
    for name in state["sha256"]:  # weights and moments of another step, with hashes that say they are right
        shutil.copy(older / name, newest)
        state["sha256"][name] = sha256_of(older / name)
    (newest / "state.json").write_text(json.dumps(state))
    fox(untrained, *PRETRAIN)
    assert trained(untrained / RUN)["pretrain"] != trained(finished / RUN)["pretrain"]


@pytest.mark.slow
def test_a_damaged_checkpoint_ends_it_and_the_mend_works(untrained: Path, finished: Path) -> None:
    kill_when(rows_reach(untrained, 11), untrained, *PRETRAIN)
    *_, older, newest = sorted((untrained / RUN / "pretrain/checkpoints").glob("step-*"))
    with (newest / "__0_0.distcp").open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\xff\xff\xff")
    _, told = fox(untrained, *PRETRAIN, expect=1)
    assert f"{newest.name}/__0_0.distcp: damaged" in told
    assert f"Remove that folder to go on from {older.name}" in told
    shutil.rmtree(newest)
    fox(untrained, *PRETRAIN)
    assert trained(untrained / RUN) == trained(finished / RUN)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_no_other_recipe(untrained: Path, finished: Path) -> None:
    kill_when(rows_reach(untrained, 8), untrained, *PRETRAIN)
    _, told = fox(untrained, *PRETRAIN, "-o", "optimizer.peak_learning_rate=0.02", expect=2)
    assert "optimizer.peak_learning_rate = 0.02" in told and "when this run began" in told and "--out" in told
    assert (
        json.loads((untrained / RUN / "recipe.json").read_text())["recipe"]["optimizer"]["peak_learning_rate"] == 0.01
    )
    two = ("-o", "optimizer.peak_learning_rate=0.02", "-o", "optimizer.eps=1e-7", "-o", "train.keep_checkpoints=3")
    _, told = fox(untrained, *PRETRAIN, *two, expect=2)
    refused = [line for line in told.splitlines() if "error" in line]
    assert len(refused) == 3 and "train.keep_checkpoints" in refused[2] and "is free to" in told
    fox(untrained, *PRETRAIN, "-o", "train.keep_checkpoints=1", "-o", "train.checkpoint_every_steps=5")
    assert trained(untrained / RUN) == trained(finished / RUN)
    kept = sorted(path.name for path in (untrained / RUN / "pretrain/checkpoints").glob("step-*"))
    assert kept == ["step-00000000", "step-00000018"], "the newest, and the one from before any drift"
    changed = (untrained / RUN / "pretrain/events.jsonl").read_text()
    assert '"values": {"train.checkpoint_every_steps": [3, 5], "train.keep_checkpoints": [2, 1]}' in changed


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_it_cleanly(untrained: Path, finished: Path) -> None:
    limit = 200_000  # the weights have 130,048 bytes, the optimiser's tensors twice that, all in one file
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))

    _, told = fox(untrained, *PRETRAIN, expect=1, preexec_fn=limited)
    assert "step-00000000" in told and "File too large" in told
    assert leftovers(untrained / RUN) == []
    assert list((untrained / RUN / "pretrain/checkpoints").iterdir()) == []
    fox(untrained, *PRETRAIN)
    assert trained(untrained / RUN) == trained(finished / RUN)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_it_cleanly_and_more_room_lets_it_go_on(
    untrained: Path, finished: Path, small_disk: Path
) -> None:
    run = shutil.copytree(untrained / RUN, small_disk / "micro")
    _, told = fox(untrained, *PRETRAIN, "--out", str(run), expect=1)
    assert (
        str(run) in told and "No space left on device" in told and "run the same command again, without --redo" in told
    )
    assert leftovers(run) == []
    checkpoints = sorted((run / "pretrain/checkpoints").glob("step-*"))
    assert checkpoints, "the disk was full before the first checkpoint"
    for checkpoint in checkpoints:
        assert len(list(checkpoint.iterdir())) == 3
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    fox(untrained, *PRETRAIN, "--out", str(run))
    assert trained(run) == trained(finished / RUN)


@pytest.mark.slow
def test_a_compiled_bf16_run_that_is_killed_goes_on_bit_for_bit(world: Path) -> None:
    import torch

    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bf16 instructions")
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("there is no C++ compiler")
    # Heads of a size for which Fox has its own attention, with norms that leave queries and keys in float32.
    fast = (
        "-o",
        "train.precision=bf16",
        "-o",
        "train.compile=true",
        "-o",
        "model.head_dim=32",
        "-o",
        "model.qk_norm=true",
    )
    fox(world, "run", "micro.toml", *fast, "--out", "whole")
    for rows in (7, 10, 16):
        reached = world / "runs/micro/pretrain/metrics.jsonl"
        kill_when(lambda rows=rows, path=reached: num_rows(path) >= rows, world, "run", "micro.toml", *fast)  # type: ignore[misc]
    fox(world, "run", "micro.toml", *fast)
    assert essence(world / "runs/micro") == essence(world / "whole")
    rows = [json.loads(line) for line in (world / "whole/pretrain/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
