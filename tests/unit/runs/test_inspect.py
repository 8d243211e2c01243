"""What a step is made of, told from a run's files: the same documents that the step is trained on, as a terminal can show them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fox.cli import app
from fox.data.shards import shard_path
from fox.errors import Failure, UserError
from fox.formats.token_shards import Shard
from fox.recipe import Recipe, load_recipe
from fox.runs.data_steps import open_shards
from fox.runs.folder import Run
from fox.runs.inspect import inspect_step
from fox.runs.pipeline import do_steps
from fox.tokenizer import Tokenizer
from fox.train.curriculum import curriculum
from fox.train.packing import open_packing
from fox.train.stages import pack
from tests.journey.micro_run import write_world


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose documents are packed, and nothing is trained yet."""
    world = write_world(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        loaded = load_recipe(Path("micro.toml"), ["train.max_epochs=100"])
        do_steps(loaded, world / "run", ["tokenizer", "data"], None, Console(quiet=True))
        made = Run(world / "run", loaded)
        shards = open_shards(made, "train", Tokenizer.load(world / "run/tokenizer").vocab_size)
        pack(loaded.recipe, loaded.recipe.stage, shards, world / "run/pretrain")
    return world / "run"


def test_it_tells_the_documents_of_the_step_in_eighty_columns(run: Path) -> None:
    lines = list(inspect_step(run, 1, 12))
    assert re.match(r"step 1 of \d+: stage \w+, its step 1 of \d+$", lines[0])
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    recipe = load_recipe(run.parent / "micro.toml", []).recipe
    tokenizer = Tokenizer.load(run / "tokenizer")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.parent)
        shards = open_shards(Run(run, load_recipe(Path("micro.toml"), [])), "train", tokenizer.vocab_size)
    orders = curriculum(recipe, recipe.stage, {name: len(shard.tokens) for name, shard in shards.items()})
    index = open_packing(run / "pretrain/packing", orders, shards)
    expected = []
    for row in orders[0].rows_of_step(0):
        for chunk in row:
            starts, lengths = index.pieces(chunk)
            ends = shards[chunk.lane.source].ends
            expected += [(int((ends <= start).sum()), int(length)) for start, length in zip(starts, lengths, strict=True)]  # fmt: skip
    told = []
    for line in lines:
        if found := re.match(
            r"    document (\d+): (?:whole, (\d+) tokens?|cut, its tokens (\d+) to (\d+) of \d+)$", line
        ):
            document, whole, first, last = found.groups()
            told.append((int(document), int(whole or int(last) - int(first) + 1)))
    assert told == expected
    assert len([line for line in lines if line.startswith("row ")]) == len(orders[0].rows_of_step(0))


def test_a_changed_mixture_is_told_from_its_step_on(run: Path) -> None:
    first_line = next(iter(inspect_step(run, 1, 4)))
    last = int(first_line.split(" of ")[1].split(":")[0])  # of a stage with more than one source
    before = list(inspect_step(run, last, 4))
    source, other = re.findall(r"^  (\w+): .* of the mixture", "\n".join(before), re.MULTILINE)[:2]
    stage = re.search(r"stage (\w+)", before[0])
    assert stage
    names = re.findall(r"^  (\w+): .* of the mixture", "\n".join(before), re.MULTILINE)
    mix = {name: 0.0 for name in names} | {source: 0.875, other: 0.125}
    events = run / "pretrain/events.jsonl"
    events.write_text(json.dumps({"event": "mix", "step": last, "stage": stage[1], "mix": mix}) + "\n")
    try:
        assert any(f"  {source}: 87.50% of the mixture" in line for line in inspect_step(run, last, 4))
        assert not any("87.50%" in line for line in inspect_step(run, last - 1, 4))
        events.write_text("[]\n")
        with pytest.raises(Failure, match=r"events\.jsonl: unreadable"):
            list(inspect_step(run, last, 4))
    finally:
        events.unlink()


@pytest.mark.parametrize("has_rows", [True, False])
def test_a_step_that_taught_nothing_is_told(run: Path, has_rows: bool) -> None:
    """Step 2 is skipped; 3 and 4 are passed over after 4, of which the row is not written yet where a kill came then."""
    events, metrics = run / "pretrain/events.jsonl", run / "pretrain/metrics.jsonl"
    happened = [
        {"event": "skip", "step": 2, "reason": "the loss 9.2 is 7.1 deviations above the usual 4.1"},
        {"event": "skip", "step": 3, "reason": "the loss is no longer finite"},
        {
            "event": "roll_back",
            "step": 4,
            "to": 2,
            "since": 3,
            "reason": "2 steps in a row were skipped: " + "so " * 20,
        },
        {"event": "skip", "step": 5, "reason": "of before the band was widened"},
    ]
    rows = [
        {"step": 1, "loss": 4.0},
        {"step": 2, "loss": 9.2, "skipped": happened[0]["reason"]},
        {"step": 3, "passed_over": happened[2]["reason"]},
        {"step": 4, "passed_over": happened[2]["reason"]},
        {"step": 5, "loss": 4.0},
    ]
    events.write_text("".join(f"{json.dumps(event)}\n" for event in happened))
    if has_rows:
        metrics.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    try:
        told = {step: list(inspect_step(run, step, 4)) for step in range(1, 6)}
        for lines in told.values():
            assert lines[0].startswith("step ") and all(len(line) <= 80 for line in lines)
        assert told[2][1] == "  skipped: the loss 9.2 is 7.1 deviations above the usual 4.1"
        for step in (3, 4):
            assert told[step][1].startswith("  passed over by the roll-back at step 4: 2 steps in a row")
        learnt = [step for step, lines in told.items() if not lines[1].startswith(("  skipped: ", "  passed over "))]
        assert learnt == ([1, 5] if has_rows else [1]), "a step that was done again and learnt then counts as learnt"
        metrics.write_text("{}\n")
        with pytest.raises(Failure, match=r"metrics\.jsonl: unreadable"):
            list(inspect_step(run, 1, 4))
    finally:
        events.unlink()
        metrics.unlink(missing_ok=True)


def test_what_is_not_there_is_said(run: Path, tmp_path: Path) -> None:
    for step in (0, -1, 10_000):
        with pytest.raises(UserError, match=rf"--step = {step}: is no step of this run\. Give one from 1 to \d+\."):
            list(inspect_step(run, step, 4))
    with pytest.raises(UserError, match="its pre-training has not begun"):
        list(inspect_step(tmp_path, 1, 4))


def test_the_commands_of_fox_data(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    terminal = CliRunner(env={"COLUMNS": "60", "TERMINAL_WIDTH": "60"})
    shown = terminal.invoke(app, ["data", "inspect", "run", "--step", "1", "--tokens", "3"])
    assert shown.exit_code == 0 and shown.output.startswith("step 1 of ")
    for words in (["data", "micro.toml"], ["data", "prepare", "micro.toml"]):
        done = terminal.invoke(app, [*words, "--out", "run", "-o", "train.max_epochs=100"])
        assert done.exit_code == 0, done.output
    missing = terminal.invoke(app, ["data", "inspect", "run", "--step", "99999"])
    assert isinstance(missing.exception, UserError)
    assert terminal.invoke(app, ["data", "inspect", "run"]).exit_code == 2
    for words in (["data", "--help"], ["data", "inspect", "--help"], ["data", "prepare", "-h"]):
        helped = terminal.invoke(app, words)
        assert helped.exit_code == 0 and all(len(line) <= 60 for line in helped.output.splitlines())
    assert {"prepare", "inspect"} <= set(re.findall(r"│ (\w+) ", terminal.invoke(app, ["data", "--help"]).output))


def test_a_stage_after_one_that_follows_the_loss_is_told_once_its_documents_are_known(
    run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    page = json.loads((folder / "recipe.json").read_text())
    page["recipe"]["stage"]["longer"]["mix_follows"] = "odm"
    (folder / "recipe.json").write_text(json.dumps(page))
    recipe = Recipe.model_validate(page["recipe"])
    vocab_size = Tokenizer.load(folder / "tokenizer").vocab_size
    shards = {name: Shard(shard_path(folder / "data", name, "train"), vocab_size) for name in recipe.source}
    orders, index = pack(recipe, recipe.stage, shards, folder / "pretrain")
    first, last = orders[1].first_step + 1, orders[2].first_step + 1
    with pytest.raises(UserError, match=rf"is of stage last, .* stage longer leaves.*a step up to {last - 1}\."):
        list(inspect_step(folder, last, 4))
    assert list(inspect_step(folder, last - 1, 4))
    mix = {name: 0.5 for name in orders[1].mix_at(0)}
    event = {"event": "mix", "step": first + 1, "stage": "longer", "mix": mix, "rewards": {}}
    (folder / "pretrain/events.jsonl").write_text(json.dumps(event) + "\n")
    index.reach("last", {order.name: order.after([event]) for order in orders})
    starts, _ = index.pieces(orders[2].rows_of_step(0)[0][0])
    documents = shards[orders[2].rows_of_step(0)[0][0].lane.source].ends.searchsorted(starts, side="right")
    told = [line for line in inspect_step(folder, last, 4) if line.startswith("    document ")]
    assert [line.split(":")[0] for line in told[: len(documents)]] == [f"    document {at}" for at in documents]
