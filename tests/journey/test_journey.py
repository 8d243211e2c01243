"""From text to a chat reply, through the command line alone; and all that may change between two runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.journey.micro_run import ENVIRONMENT, essence, fox, kill_when, leftovers, num_rows, start, trained

COMMANDS = ["run", "show", "plan", "tokenizer", "data", "pretrain", "tune", "eval", "report", "chat"]


def test_a_run_leaves_models_scores_and_a_report(finished: Path) -> None:
    run = finished / "runs/micro"
    for step in ("tokenizer", "data", "pretrain", "tune", "eval", "report"):
        manifest = json.loads((run / f"manifests/{step}.json").read_text())
        assert manifest["inputs"] and manifest["outputs"]
    assert leftovers(run) == []
    assert (run / "report/index.html").stat().st_size > 10_000
    results = json.loads((run / "eval/results.json").read_text())
    assert list(results["bits_per_byte"]) == ["short", "longer", "base", "tuned"]
    assert all(0 < bits < 8 for scores in results["bits_per_byte"].values() for bits in scores.values())
    losses = [json.loads(line)["loss"] for line in (run / "pretrain/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5
    kept = sorted(path.name for path in (run / "pretrain/checkpoints").glob("step-*"))
    assert kept == ["step-00000000", "step-00000015", "step-00000018"]


def test_a_model_answers_one_message_and_piped_lines(finished: Path) -> None:
    model = "runs/micro/tuned"
    one, _ = fox(finished, "chat", model, "--prompt", "Kado loren.", "--max-tokens", "20", "--seed", "1")
    again, _ = fox(finished, "chat", model, "--prompt", "Kado loren.", "--max-tokens", "20", "--seed", "1")
    assert one == again and one.endswith("\n")
    lines, _ = fox(finished, "chat", model, "--max-tokens", "5", said="Kado.\n\nLoren?\n")
    assert lines.count("\n") >= 2


@pytest.mark.slow
def test_every_step_alone_does_what_run_does(finished: Path, world: Path) -> None:
    for step in ("tokenizer", "data", "pretrain", "tune", "eval"):
        fox(world, step, "micro.toml")
    assert essence(world / "runs/micro") == essence(finished / "runs/micro")
    out, _ = fox(world, "report", "runs/micro")
    assert "runs/micro/report/index.html" in out
    assert (world / "runs/micro/report/index.html").stat().st_size > 10_000


def test_show_names_every_value_and_plan_its_cost(finished: Path) -> None:
    out, _ = fox(finished, "show", "micro.toml", "-o", "seed=5")
    assert "model.hidden_size" in out and "-o" in out
    fox(finished, "plan", "micro.toml", "--tokens-per-second", "1000")


def test_a_run_that_is_done_is_not_done_again(copied: Path) -> None:
    before = essence(copied / "runs/micro")
    began = time.monotonic()
    out, told = fox(copied, "run", "micro.toml")
    assert time.monotonic() - began < 10
    assert told.count("done before") == 6
    assert "tuned model" in out
    fox(copied, "report", "runs/micro")
    assert fox(copied, "run", "micro.toml")[1].count("done before") == 6
    out, told = fox(copied, "eval", "micro.toml")
    assert "done before" in told and "Kneser-Ney" in out
    assert essence(copied / "runs/micro") == before


@pytest.mark.slow
def test_redo_does_a_step_and_what_follows_again_and_comes_to_the_same(copied: Path) -> None:
    before = essence(copied / "runs/micro")
    _, told = fox(copied, "run", "micro.toml", "--redo", "tune")
    assert "removed what tune, eval, report had made" in told
    assert told.count("done before") == 3
    assert essence(copied / "runs/micro") == before
    for words, problem in (
        (("pretrain", "micro.toml", "--redo", "data"), "is not what this command does"),
        (("run", "micro.toml", "--redo", "nothing"), "is no step"),
    ):
        _, told = fox(copied, *words, expect=2)
        assert problem in told and "removed" not in told
    assert essence(copied / "runs/micro") == before


def test_a_changed_recipe_is_named_and_nothing_is_thrown_away(copied: Path) -> None:
    before = essence(copied / "runs/micro")
    recipe = (copied / "runs/micro/recipe.json").read_bytes()
    for key, value, step in (
        ("model.hidden_size", "64", "pretrain"),
        ("tune.optimizer.peak_learning_rate", "0.5", "tune"),
        ("eval.reply_tokens", "9", "eval"),
        ("tokenizer.vocab_size", "421", "tokenizer"),
    ):
        _, told = fox(copied, "run", "micro.toml", "-o", f"{key}={value}", expect=2)
        assert key in told and f"--redo {step}" in told and "--out" in told
    assert (copied / "runs/micro/recipe.json").read_bytes() == recipe
    assert essence(copied / "runs/micro") == before
    fox(copied, "run", "micro.toml", "-o", "train.keep_checkpoints=1")  # changes no loss, so it may change


def test_no_step_says_that_an_earlier_one_had_other_values(untuned: Path) -> None:
    run = untuned / "runs/micro"
    recipe = (run / "recipe.json").read_bytes()
    for key in ("stage.short.tokens=40e6", "model.hidden_size=64", "tokenizer.vocab_size=421", "train.precision=bf16"):
        _, told = fox(untuned, "tune", "micro.toml", "-o", key, expect=2)
        assert key.partition("=")[0] in told and "`fox run` with --redo" in told
        assert not (run / "tuned").exists()
    _, told = fox(untuned, "run", "micro.toml", "--redo", "tune", "-o", "model.hidden_size=64", expect=2)
    assert "model.hidden_size" in told and "removed" not in told
    assert (run / "recipe.json").read_bytes() == recipe
    for path in ("text", "chats.jsonl"):  # a step that reads no source needs none
        (untuned / path).rename(untuned / f"{path}.elsewhere")
    fox(untuned, "tune", "micro.toml", "-o", "eval.reply_tokens=9")
    values = json.loads((run / "recipe.json").read_text())["recipe"]
    assert values["eval"]["reply_tokens"] == 9 and values["model"]["hidden_size"] == 32


def test_a_changed_tokenizer_of_ones_own_is_noticed(finished: Path, world: Path) -> None:
    own = Path(shutil.copytree(finished / "runs/micro/tokenizer", world / "own"))
    words = ("tokenizer", "micro.toml", "-o", "tokenizer.path=own")
    fox(world, *words)
    config = (own / "tokenizer_config.json").read_text()
    for name, content in (("tokenizer_config.json", f"{config} "), ("chat_template.jinja", "{{ messages }}")):
        (own / name).write_text(content)
        _, told = fox(world, *words, expect=2)
        assert f"tokenizer_files.{name}" in told and "--redo tokenizer" in told
        (own / "tokenizer_config.json").write_text(config)
    (own / "chat_template.jinja").unlink()
    assert "done before" in fox(world, *words)[1]


def test_an_output_is_hashed_again_where_its_size_or_time_is_another_or_something_is_trained(untuned: Path) -> None:
    path, manifest = untuned / "runs/micro/data/chats.train.ds", untuned / "runs/micro/manifests/data.json"
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fox(untuned, "data", "micro.toml")  # nobody looked
    assert "chats.train.ds: has changed since" in fox(untuned, "tune", "micro.toml", expect=1)[1]
    assert not (untuned / "runs/micro/tune/metrics.jsonl").exists()
    os.utime(path, ns=(1, 1))
    assert "has changed since" in fox(untuned, "data", "micro.toml", expect=1)[1]
    path.write_bytes(content)
    fox(untuned, "data", "micro.toml")
    stamp = json.loads(manifest.read_text())["stamps"]["data/chats.train.ds"]
    assert stamp == {"bytes": len(content), "mtime_ns": path.stat().st_mtime_ns}, "it would be hashed at each command"


def test_a_report_that_is_drawn_again_or_lost_stops_nothing(copied: Path) -> None:
    page = copied / "runs/micro/report/index.html"
    page.write_text("another")
    assert fox(copied, "run", "micro.toml")[1].count("done before") == 6
    shutil.rmtree(page.parent)
    assert fox(copied, "run", "micro.toml")[1].count("done before") == 5
    assert page.stat().st_size > 10_000


def test_a_changed_source_is_noticed(copied: Path) -> None:
    story = copied / "text/007.txt"
    shutil.copystat(copied / "text/008.txt", story)
    fox(copied, "run", "micro.toml")  # its time alone is nothing
    content = story.read_text()
    story.write_text(content.replace("a", "e", 1))
    _, told = fox(copied, "run", "micro.toml", expect=2)
    assert "files.stories" in told and "--redo tokenizer" in told
    story.write_text(content)
    fox(copied, "run", "micro.toml")
    (copied / "text/new.txt").write_text("Kado loren.\n")
    assert "files.stories" in fox(copied, "data", "micro.toml", expect=2)[1]


@pytest.mark.parametrize(
    ("file", "step", "next_step"),
    [
        ("tokenizer/tokenizer.json", "tokenizer", "data"),
        ("data/chats.train.ds", "data", "tune"),
        ("model/model.safetensors", "pretrain", "eval"),
        ("pretrain/heldout/last.json", "pretrain", "eval"),
        ("pretrain/metrics.jsonl", "pretrain", "eval"),
        ("tune/metrics.jsonl", "tune", "eval"),
    ],
)
def test_a_changed_output_is_noticed_by_run_and_by_the_next_step(
    copied: Path, file: str, step: str, next_step: str
) -> None:
    path = copied / "runs/micro" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for command in ("run", next_step):
        _, told = fox(copied, command, "micro.toml", expect=1)
        assert file in told and "has changed since" in told and f"--redo {step}" in told
    path.unlink()
    assert "is gone since" in fox(copied, "run", "micro.toml", expect=1)[1]


def test_scores_of_stages_that_are_gone_are_a_failure(copied: Path) -> None:
    (copied / "runs/micro/pretrain/heldout/short.json").unlink()
    _, told = fox(copied, "run", "micro.toml", "--redo", "eval", expect=1)
    assert "heldout/short.json" in told and "--redo pretrain" in told


def test_two_runs_in_one_folder_get_in_nobodys_way(untrained: Path) -> None:
    long = ("pretrain", "micro.toml", "-o", "stage.short.tokens=4e6", "-o", "train.max_epochs=1e6")
    with start(untrained, *long) as first:
        while num_rows(untrained / "runs/micro/pretrain/metrics.jsonl") < 2 and first.poll() is None:
            time.sleep(0.01)
        _, told = fox(untrained, *long, expect=1)
        assert f"process {first.pid}" in told and "--out" in told
        assert first.poll() is None
        first.kill()


def test_steps_in_the_wrong_order_say_which_comes_first(world: Path) -> None:
    for step, missing in (("data", "tokenizer"), ("pretrain", "tokenizer"), ("tune", "pretrain"), ("eval", "pretrain")):
        _, told = fox(world, step, "micro.toml", expect=2)
        assert missing in told and f"Run `fox {missing}`" in told
    assert not (world / "runs/micro/manifests").exists()


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_goes_on_to_the_same_end(untrained: Path) -> None:
    long = ("pretrain", "micro.toml", "-o", "stage.last.tokens=51200")  # so that a signal that is late meets it still
    whole = shutil.copytree(untrained, untrained.with_name("whole"))
    metrics = untrained / "runs/micro/pretrain/metrics.jsonl"
    code, told = kill_when(lambda: num_rows(metrics) >= 4, untrained, *long, sent=signal.SIGINT)
    assert code == 130
    assert "goes on from here with the same command (without --redo)" in told and "Traceback" not in told
    assert (metrics.parent / "checkpoints/latest").read_text() == f"step-{num_rows(metrics):08d}\n"
    assert leftovers(untrained / "runs") == []
    for folder in (untrained, whole):
        fox(folder, *long)
    assert trained(untrained / "runs/micro") == trained(whole / "runs/micro")


def test_two_held_out_tokens_are_scored(untrained: Path) -> None:
    fox(untrained, "pretrain", "micro.toml", "-o", "eval.heldout_tokens=2")
    scores = json.loads((untrained / "runs/micro/pretrain/heldout/last.json").read_text())
    assert list(scores["bits_per_byte"]) == ["stories"]  # of a chat, two tokens are only its marks


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 2, 10])
def test_very_little_held_out_text_goes_all_the_way(world: Path, tokens: int) -> None:
    out, _ = fox(world, "run", "micro.toml", "-o", f"eval.heldout_tokens={tokens}")
    assert "base model" in out


def test_help_answers_in_less_than_a_second_and_without_torch(tmp_path: Path) -> None:
    code = "import sys; from fox.cli import app; app(['--help'], standalone_mode=False); print(sorted(sys.modules))"
    began = time.monotonic()
    fox(tmp_path, "--help")
    assert time.monotonic() - began < 1
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True)
    assert "'fox.cli'" in done.stdout and "'torch'" not in done.stdout and "'numpy'" not in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_fits_a_narrow_terminal(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fox", command, "--help"],
        env={**ENVIRONMENT, "COLUMNS": "60"}, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert max(len(line) for line in done.stdout.splitlines()) <= 60
