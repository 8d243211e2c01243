"""Other people's models through the command line: exported, compared, talked with and measured; and what is told of mistakes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fox import cli
from fox.model import ModelConfig, Transformer
from fox.model.directory import load_model, save_model
from fox.tokenizer import Tokenizer
from tests.journey.micro_run import ENVIRONMENT, leftovers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tiny_tokenizer: Tokenizer, make_config: Callable[..., ModelConfig], tmp_path: Path) -> Path:
    """A folder with a model in `theirs`, and a text."""
    model = Transformer(make_config(hidden_size=64, head_dim=16, initializer_range=0.1)).eval()
    model.initialise(torch.Generator().manual_seed(0))
    save_model(tmp_path / "theirs", model, tiny_tokenizer)
    (tmp_path / "a.txt").write_text(
        "The fox no. 7 ran over the lazy dog, and said: «naïve café», 日本語 🦊 12345.\n" * 30
    )
    return tmp_path


@pytest.fixture
def command(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`fox` in that folder, in this process and on a narrow terminal: its exit code, output and errors."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("COLUMNS", "60")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fox", *words])
        capfd.readouterr()
        code: int | str | None = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        return int(code or 0), said.out, said.err

    return run


def done(command: Cli, *words: str) -> tuple[str, str]:
    code, out, errors = command(*words)
    assert code == 0, errors
    return out, errors


def test_from_a_folder_to_gguf_and_back(here: Path, command: Cli) -> None:
    _, told = done(command, "export", "theirs", "--out", "a.gguf")
    assert "a.gguf: f32" in told and "Read back and compared" in told
    assert (here / "a.md").read_text().startswith("---")

    out, _ = done(command, "compare", "theirs", "a.gguf", "--text", "a.txt", "--json")
    result = json.loads(out)
    assert result["same_top_token"] == 1.0
    assert result["max_kl_nats"] == 0.0 == result["perplexity_change"]
    assert result["tokens"] > 500

    replies = [
        done(command, "chat", name, "--prompt", "The fox", "--max-tokens", "8", "--temperature", "0")[0]
        for name in ("theirs", "a.gguf")
    ]
    assert replies[0] == replies[1] and replies[0].strip()

    scores = [json.loads(done(command, "eval", name, "--text", "a.txt", "--json")[0]) for name in ("theirs", "a.gguf")]
    assert scores[0]["scores"] == scores[1]["scores"]
    of = scores[0]["scores"][0]["all_text"]
    assert of["bits_per_byte"] > 0 and of["documents"] == 1 and of["bytes"] > 1000

    done(command, "export", "a.gguf", "--to", "hf", "--type", "f32", "--out", "again", "--shard-size", "50KB")
    ours, theirs = (load_model(here / name)[0] for name in ("theirs", "again"))
    assert all(torch.equal(ours.get_parameter(name), made) for name, made in theirs.named_parameters())
    assert len(list((here / "again").glob("*.safetensors"))) > 1
    assert leftovers(here) == []


def test_a_rounded_model_differs_and_says_by_how_much(command: Cli) -> None:
    done(command, "export", "theirs", "--type", "q4_0", "--out", "small.gguf")
    result = json.loads(done(command, "compare", "theirs", "small.gguf", "--text", "a.txt", "--json")[0])
    assert result["same_top_token"] < 1 and result["mean_kl_nats"] > 1e-5
    table, _ = done(command, "compare", "theirs", "small.gguf", "--text", "a.txt", "--max-tokens", "100")
    assert "same likeliest token" in table and "%" in table
    assert max(map(len, table.splitlines())) <= 60
    measured, _ = done(command, "eval", "small.gguf", "--text", "a.txt")
    assert "bits a byte" in measured.replace("\n", " ") or "bits" in measured


def test_for_ollama(here: Path, command: Cli) -> None:
    done(command, "export", "theirs", "--to", "ollama", "--type", "q8_0", "--out", "mine")
    assert (here / "mine/Modelfile").read_text().startswith("FROM ./model.gguf\nTEMPLATE")
    assert done(command, "chat", "mine/model.gguf", "--prompt", "Hi", "--max-tokens", "3")[0]


def broken(here: Path) -> None:
    model, tokenizer = load_model(here / "theirs")
    with torch.no_grad():
        model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    save_model(here / "nan", model, tokenizer)


def other_tokenizer(here: Path) -> None:
    from fox.tokenizer.train import train_tokenizer

    model, _ = load_model(here / "theirs")
    texts = (f"Kado loren {n} mire.\n" for n in range(300))
    save_model(here / "other", model, train_tokenizer(texts, vocab_size=270, max_length=256))


def nothing(_: Path) -> None:
    pass


def link_to_nowhere(here: Path) -> None:
    (here / "nowhere").symlink_to("gone")


def latin(here: Path) -> None:
    (here / "latin.py").write_bytes(b"caf\xe9")
    (here / "notes").mkdir()
    (here / "notes/a.py").write_text("print()")


MISTAKES: dict[str, tuple[Callable[[Path], None], list[str], int, list[str]]] = {
    "no such format": (nothing, ["export", "theirs", "--to", "onnx", "--out", "x"], 2, ["--to = 'onnx'", "gguf, hf, ollama are."]),
    "no such type": (nothing, ["export", "theirs", "--type", "q3_k", "--out", "x"], 2, ["--type = 'q3_k': is no type of gguf", "q4_k_m"]),
    "blocks in a folder": (nothing, ["export", "theirs", "--to", "hf", "--type", "q4_0", "--out", "x"], 2, ["is no type of hf", "f32, f16, bf16 are."]),
    "no such size": (nothing, ["export", "theirs", "--to", "hf", "--out", "x", "--shard-size", "big"], 2, ["--shard-size = 'big': is no size", "5GB"]),
    "a size without a unit": (nothing, ["export", "theirs", "--to", "hf", "--out", "x", "--shard-size", "5"], 2, ["--shard-size = '5': is no size"]),
    "a size for one file": (nothing, ["export", "theirs", "--out", "x", "--shard-size", "5GB"], 2, ["--shard-size = '5GB': is for hf, and this is gguf"]),
    "no size at all": (nothing, ["export", "theirs", "--to", "hf", "--out", "x", "--shard-size", "0"], 2, ["--shard-size = '0'"]),
    "nowhere to": (nothing, ["export", "theirs"], 2, ["--out"]),
    "there already": (nothing, ["export", "theirs", "--to", "hf", "--out", "theirs"], 2, ["--out = 'theirs': is there already"]),
    "here": (nothing, ["export", "theirs", "--out", "."], 2, ["--out = '.': is there already"]),
    "in a file": (nothing, ["export", "theirs", "--out", "a.txt/x.gguf"], 2, ["--out = 'a.txt/x.gguf': can't be made, for a.txt is no folder"]),
    "behind a link": (link_to_nowhere, ["export", "theirs", "--to", "hf", "--out", "nowhere/a/b"], 2, ["for nowhere is no folder"]),
    "where nobody writes": (nothing, ["export", "theirs", "--out", "/proc/x.gguf"], 1, ["/proc/x.gguf: can't be made"]),
    "before the model is opened": (nothing, ["export", "missing", "--out", "a.txt"], 2, ["--out = 'a.txt': is there already"]),
    "weights of NaN": (broken, ["export", "nan", "--out", "x"], 2, ["layers.1.mlp.up_proj.weight", "NaN"]),
    "NaN compared": (broken, ["compare", "theirs", "nan", "--text", "a.txt"], 1, ["nan: predicts NaN"]),
    "nothing to measure on": (nothing, ["eval", "theirs"], 2, ["--text: is missing", "--chats FILE"]),
    "no such text": (nothing, ["eval", "theirs", "--text", "none.txt"], 2, ["--text = 'none.txt': there is no such file or folder"]),
    "no such chats": (nothing, ["eval", "theirs", "--chats", "none.jsonl"], 2, ["--chats = 'none.jsonl': there is no such file or folder"]),
    "other text than UTF-8": (latin, ["eval", "theirs", "--text", "latin.py"], 2, ["--text = 'latin.py': is not UTF-8 text"]),
    "a folder of nothing": (latin, ["eval", "theirs", "--text", "notes"], 2, ["--text = 'notes': has no file to read", "Name a file"]),
    "chats in a text": (nothing, ["eval", "theirs", "--chats", "a.txt"], 2, ["--chats = 'a.txt'", "JSON Lines"]),
    "no such text to compare on": (nothing, ["compare", "theirs", "theirs", "--text", "none.txt"], 2, ["--text = 'none.txt': can't be read"]),
    "a recipe with --text": (nothing, ["eval", "tiny.toml", "--text", "a.txt"], 2, ["--text: is for a model, and tiny.toml is a recipe"]),
    "a model with -o": (nothing, ["eval", "theirs", "--text", "a.txt", "-o", "a=1"], 2, ["-o: is for a recipe, and theirs is a model"]),
    "other tokens": (other_tokenizer, ["compare", "theirs", "other", "--text", "a.txt"], 2, ["MODEL_B = 'other'", "fox eval"]),
    "no name": (nothing, ["chat", ""], 2, ["MODEL = '': is empty"]),
    "no such model": (nothing, ["chat", "missing", "--prompt", "x"], 2, ["MODEL = 'missing': there is no such file or folder", "owner/name"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words", "code", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_and_leaves_nothing(
    make: Callable[[Path], None], words: list[str], code: int, told: list[str], here: Path, command: Cli
) -> None:
    make(here)
    before = sorted(here.rglob("*"))
    ended, out, errors = command(*words)
    assert ended == code, errors
    assert out == ""
    for word in told:
        assert word in errors
    assert sorted(here.rglob("*")) == before


def test_a_text_of_any_suffix_is_measured(here: Path, command: Cli) -> None:
    (here / "notes.py").write_bytes((here / "a.txt").read_bytes())
    scores = [
        json.loads(done(command, "eval", "theirs", "--text", name, "--json")[0]) for name in ("a.txt", "notes.py")
    ]
    assert scores[0]["scores"][0]["all_text"] == scores[1]["scores"][0]["all_text"]


@pytest.mark.parametrize(
    "words", [["chat", "theirs", "--prompt", "Hi"], ["eval", "theirs", "--text", "a.txt", "--json"]]
)
def test_a_full_disk_behind_the_output_is_a_failure(words: list[str], here: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "fox", *words],
            cwd=here, env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert ended.returncode == 1
    assert "failed: standard output: can't be written (No space left on device)" in ended.stderr
    assert "Traceback" not in ended.stderr and "Exception ignored" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (["run", "a.toml"], True),
        (["eval", "a.toml"], True),
        (["eval", "theirs"], False),
        (["chat", "theirs"], False),
        (["export", "theirs", "--out", "x"], False),
    ],
)
def test_only_a_run_is_said_to_go_on(
    words: list[str], goes_on: bool, command: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    code, _, errors = command(*words)
    assert code == 130 and errors.startswith("stopped.")
    assert ("goes on from here" in errors) is goes_on


def test_too_short_a_text(here: Path, command: Cli) -> None:
    (here / "short.txt").write_text("a")
    assert "too short" in command("compare", "theirs", "theirs", "--text", "short.txt")[2]
    (here / "latin.txt").write_bytes(b"caf\xe9")
    for length in (1, 1000):  # also where more is there than is read
        (here / "latin.txt").write_bytes(b"caf\xe9 " * length)
        told = command("compare", "theirs", "theirs", "--text", "latin.txt", "--max-tokens", "50")[2]
        assert "is not UTF-8 text" in told
    (here / "long.txt").write_text("日" * 1000)  # cut within a character
    assert command("compare", "theirs", "theirs", "--text", "long.txt", "--max-tokens", "50")[0] == 0


@pytest.mark.slow
def test_a_name_on_the_hub_without_a_network(here: Path) -> None:
    """In a process of its own, since huggingface_hub reads its settings when it is imported."""
    repo = here / "home/hub/models--owner--model"
    shutil.copytree(here / "theirs", repo / f"snapshots/{COMMIT}")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    alone = {**ENVIRONMENT, "HF_HOME": str(here / "home"), "HF_HUB_OFFLINE": "1"}
    for unwanted in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        alone.pop(unwanted, None)
    code = """
import sys
from fox import cli
for name in ("owner/model", "owner/other"):
    sys.argv = ["fox", "chat", name, "--prompt", "The fox", "--max-tokens", "3"]
    try:
        cli.main()
    except SystemExit as end:
        print(name, end.code)
"""
    both = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=alone, capture_output=True, text=True, timeout=60, check=True
    )
    reply, told, nothing_more = both.stdout.partition("owner/model 0\nowner/other 1\n")
    assert reply.strip() and told and not nothing_more
    assert "failed: owner/other: is not on this machine" in both.stderr and "name a folder" in both.stderr
    assert "warning" not in both.stderr and "Traceback" not in both.stderr
