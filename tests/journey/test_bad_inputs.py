"""Whatever a user gets wrong ends with its key, its reason and exit code 2, and leaves nothing half-done."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journey.micro_run import ENVIRONMENT, fox, leftovers


def no_text(world: Path) -> None:
    shutil.rmtree(world / "text")


def empty_folder(world: Path) -> None:
    no_text(world)
    (world / "text").mkdir()


def not_utf8(world: Path) -> None:
    for number in range(5):
        (world / f"text/{number:03}.txt").write_bytes(b"caf\xe9 " * 20)


def broken_gzip(world: Path) -> None:
    (world / "text/old.txt.gz").write_bytes(gzip.compress(b"Kado loren. " * 500)[:-20])
    (world / "text/older.txt.gz").write_bytes(b"no gzip at all")


def broken_json(world: Path) -> None:
    with (world / "chats.jsonl").open("a") as file:
        file.write('{"messages": [{"role": "user"\n' * 5)


def nobody_answers(world: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Kado?"}]}
    (world / "chats.jsonl").write_text(f"{json.dumps(chat)}\n" * 9)


def garbage_tokenizer(world: Path) -> None:
    (world / "own").mkdir()
    (world / "own/tokenizer.json").write_bytes(b"\x00\xff garbage")
    (world / "own/tokenizer_config.json").write_text("{}")


def other_tokenizer(world: Path) -> None:
    fox(world, "tokenizer", "micro.toml", "-o", "tokenizer.vocab_size=400", "--out", "other")
    shutil.copytree(world / "other/tokenizer", world / "own")


def nothing(world: Path) -> None:
    pass


OWN = "tokenizer.path='own'"
CASES: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "missing source": (no_text, [], ["source.stories.path", "does not exist"]),
    "empty folder": (empty_folder, [], ["source.stories.path", "has no file to read"]),
    "not UTF-8": (not_utf8, [], ["source.stories.max_bad_fraction", "is not UTF-8", "000.txt"]),
    "broken gzip": (broken_gzip, [], ["source.stories.max_bad_fraction", "gzip is cut short or damaged"]),
    "broken JSON": (broken_json, [], ["source.chats.max_bad_fraction", "chats.jsonl:151"]),
    "no assistant turn": (nobody_answers, [], ["source.chats.path", "no assistant turn"]),
    "unknown key": (nothing, ["model.hidden_sise=3"], ["model.hidden_sise", "unknown key", "hidden_size"]),
    "odd heads": (nothing, ["model.hidden_size=34"], ["model.hidden_size", "num_attention_heads"]),
    "chunk too long": (
        nothing,
        ["stage.last.chunk_length=128"],
        ["stage.last.chunk_length", "max_position_embeddings"],
    ),
    "no whole passes": (nothing, ["stage.last.batch_tokens=300"], ["stage.last.batch_tokens", "multiple"]),
    "too large a vocabulary": (nothing, ["tokenizer.vocab_size=50000"], ["tokenizer.vocab_size", "training text"]),
    "no tokenizer there": (nothing, [OWN], ["own", "tokenizer.json"]),
    "a tokenizer of garbage": (garbage_tokenizer, [OWN], ["own", "can't be read"]),
    "a tokenizer that does not fit": (other_tokenizer, [OWN], ["tokenizer.vocab_size = 420", "400"]),
    "nothing held out": (nothing, ["data.heldout_fraction=1e-9"], ["data.heldout_fraction", "holds out no document"]),
    "too small a share": (
        nothing,
        ["stage.last.mix={ text = 1, chat = 1e-6 }"],
        ["stage.last.mix", "too small a share"],
    ),
}


@pytest.mark.parametrize(("make", "overrides", "told"), CASES.values(), ids=CASES.keys())
def test_a_bad_input_is_named_and_leaves_nothing_half_done(
    world: Path, make: Callable[[Path], None], overrides: list[str], told: list[str]
) -> None:
    make(world)
    _, errors = fox(world, "run", "micro.toml", *(word for key in overrides for word in ("-o", key)), expect=2)
    for word in told:
        assert word in errors
    run = world / "runs/micro"
    assert leftovers(world) == []
    for made, step in (("tokenizer", "tokenizer"), ("data", "data"), ("model", "pretrain")):
        assert (run / made).exists() == (run / f"manifests/{step}.json").exists()
    assert not (run / "model").exists()


def test_a_recipe_that_is_not_there(tmp_path: Path) -> None:
    assert "none.toml" in fox(tmp_path, "run", "none.toml", expect=2)[1]


def test_a_folder_that_can_not_be_one(world: Path) -> None:
    (world / "taken").write_text("a file")
    assert "taken" in fox(world, "run", "micro.toml", "--out", "taken", expect=2)[1]


def test_a_model_that_is_none(world: Path) -> None:
    assert "is no model directory" in fox(world, "chat", "text", "--prompt", "Kado", expect=2)[1]


@pytest.mark.parametrize(
    ("out", "code", "told"),
    [
        ("x" * 300, 1, "File name too long"),
        ("/proc/x", 1, "Name another folder with --out"),
        (b"caf\xe9", 2, "is not UTF-8"),
    ],
    ids=["too long", "in /proc", "no UTF-8"],
)
def test_a_folder_that_nobody_can_make(world: Path, out: str | bytes, code: int, told: str) -> None:
    words = [sys.executable, "-m", "fox", "run", "micro.toml", "--out", out]
    done = subprocess.run(words, cwd=world, env=ENVIRONMENT, capture_output=True, timeout=60)
    errors = done.stderr.decode(errors="replace")
    assert done.returncode == code and told in errors and "Traceback" not in errors
    assert len(list(world.iterdir())) == 3


def test_a_folder_that_may_not_be_listed() -> None:
    code = """
import os, sys
from pathlib import Path
from rich.console import Console
from fox.errors import Failure
from fox.runs.pipeline import do_steps
if os.geteuid() == 0:
    os.setuid(65534)  # root may list everything
try:
    do_steps(None, Path(sys.argv[1]), ["tokenizer"], None, Console())
except Failure as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: nobody else may enter that
        folder = Path(name, "in")
        folder.mkdir()
        folder.chmod(0o311)
        Path(name).chmod(0o755)
        words = [sys.executable, "-c", code, folder]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        folder.chmod(0o755)
    assert f"{folder}: can't be written (Permission denied)" in done.stdout, done.stderr


def test_a_home_of_nobody(world: Path) -> None:
    _, told = fox(world, "tokenizer", "micro.toml", "-o", "tokenizer.path=~no-such-user-here/x", expect=2)
    assert "tokenizer.path" in told and "can't be read" in told


def test_files_of_a_run_that_hold_something_else(untuned: Path) -> None:
    run = untuned / "runs/micro"
    for content in ("[1]", '{"stories": [1]}', '{"stories": {"000.txt": 1}}', "[" * 100_000):
        (run / "inventory.json").write_text(content)
        fox(untuned, "data", "micro.toml")
    manifest = run / "manifests/pretrain.json"
    for content in ("{}", "[1]", "1", '{"inputs": {}, "outputs": {}, "facts": {}}', "[" * 100_000):
        manifest.write_text(content)
        _, told = fox(untuned, "tune", "micro.toml", expect=1)
        assert "manifests/pretrain.json: can't be read" in told and "Remove it" in told
