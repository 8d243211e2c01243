"""Somebody else's model trained on: what came with it is still there, before and after are measured, a changed file is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fox.export.gguf import export_gguf
from fox.model import ModelConfig, Transformer
from fox.model.config import RopeScaling
from fox.model.directory import save_model
from fox.model.stored import open_model
from fox.tokenizer import Tokenizer
from tests.journey.micro_run import fox, write_world

PAGE = """\
name = "on"
seed = 3

[model]
start_from = "theirs"

[source.own]
path = "text"

[source.replay]
path = "chats.jsonl"
kind = "chat"

[data]
heldout_fraction = 0.1

[train]
compile = false
precision = "float32"

[optimizer]
peak_learning_rate = 3e-3

[schedule]
warmup_tokens = 256
decay_tokens = 512

[stage.new]
tokens = 2048
chunk_length = 32
rows = 4
batch_tokens = 256
mix = { own = 0.8, replay = 0.2 }

[eval]
heldout_tokens = 2000
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A folder with text, a model of others in `theirs` (padded vocabulary, stretched positions, a licence), and a finished run."""
    folder = write_world(tmp_path_factory.mktemp("continue") / "world")
    (folder / "continue.toml").write_text(PAGE)
    config = ModelConfig(
        vocab_size=tiny_tokenizer.vocab_size + 24, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rope_theta=20_000.0,
        rms_norm_eps=1e-5, initializer_range=0.1, tie_word_embeddings=True, rope_scaling=RopeScaling("linear", 2.0),
        qk_norm=True,
    )  # fmt: skip
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    save_model(folder / "theirs", model, tiny_tokenizer, advised={"temperature": 0.3, "do_sample": True})
    stated = json.loads((folder / "theirs/config.json").read_text())
    stated["eos_token_id"] = [stated["eos_token_id"], tiny_tokenizer.special_ids["<end_of_turn>"]]
    (folder / "theirs/config.json").write_text(json.dumps(stated))
    (folder / "theirs/README.md").write_text("---\nlicense: mit\n---\n# Theirs\n")
    fox(folder, "run", "continue.toml")
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs/on/eval/results.json").read_text())


def test_what_came_with_the_model_is_in_the_new_one(world: Path, tiny_tokenizer: Tokenizer) -> None:
    theirs, ours = open_model(world / "theirs"), open_model(world / "runs/on/model")
    assert ours.config == theirs.config
    assert ours.config.vocab_size == tiny_tokenizer.vocab_size + 24
    assert ours.tokenizer.stop_ids == theirs.tokenizer.stop_ids and len(ours.tokenizer.stop_ids) == 2
    assert ours.generation == theirs.generation == {"temperature": 0.3, "do_sample": True}
    assert ours.tokenizer.config["chat_template"] == theirs.tokenizer.config["chat_template"]


@pytest.mark.slow
def test_before_and_after_are_measured_on_both_sources(world: Path) -> None:
    scores = results(world)["bits_per_byte"]
    assert list(scores) == ["start", "base"]
    for source in ("own", "replay"):
        assert scores["base"][source] < scores["start"][source]
    _, shown = fox(world, "eval", "continue.toml")
    assert "done before" in shown
    assert "before" in fox(world, "eval", "continue.toml")[0]


def test_the_start_is_scored_with_the_models_own_weights(world: Path) -> None:
    """By `fox eval MODEL`'s own way: a starting score of fresh weights would be another."""
    run = json.loads((world / "runs/on/manifests/pretrain.json").read_text())
    assert run["facts"]["base_model"] == {"name": "theirs", "from_hub": False, "license": "mit", "weights": ["F32"]}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= run["inputs"]["base_model"].keys()
    first = json.loads((world / "runs/on/pretrain/metrics.jsonl").read_text().splitlines()[0])
    model, ids = open_model(world / "theirs").load(), torch.arange(20)[None]
    assert torch.isfinite(model.logits(model(ids))).all() and first["loss"] > 0


def test_a_changed_file_of_the_base_model_is_noticed(world: Path) -> None:
    card = world / "theirs/README.md"
    before = card.read_text()
    card.write_text(before.replace("mit", "apache-2.0"))
    try:
        _, errors = fox(world, "pretrain", "continue.toml", expect=2)
    finally:
        card.write_text(before)
    assert "base_model.README.md" in errors and "--redo pretrain" in errors


def test_the_card_tells_the_base_model_and_its_licence(world: Path) -> None:
    fox(world, "export", "runs/on", "--to", "hf", "--out", "given")
    card = (world / "given/README.md").read_text()
    assert "license: mit" in card.split("---")[1]
    assert "began with the weights of theirs" in card
    assert "as its files state: mit" in card


@pytest.mark.slow
def test_a_gguf_file_and_a_run_are_started_from_too(world: Path, tmp_path: Path) -> None:
    export_gguf(open_model(world / "theirs"), tmp_path / "theirs.gguf", "q8_0", {}, lambda _: None)
    quick = ["-o", "stage.new.tokens=512", "-o", "schedule.warmup_tokens=0", "-o", "schedule.decay_tokens=256"]
    for name, weights in ((str(tmp_path / "theirs.gguf"), "Q8_0"), ("runs/on", "F32")):
        out = tmp_path / weights
        fox(world, "pretrain", "continue.toml", "--out", str(out), "-o", f"model.start_from={name}", *quick, expect=2)
        for step in ("tokenizer", "data", "pretrain"):
            fox(world, step, "continue.toml", "--out", str(out), "-o", f"model.start_from={name}", *quick)
        facts = json.loads((out / "manifests/pretrain.json").read_text())["facts"]
        assert weights in facts["base_model"]["weights"]
        start = json.loads((out / "pretrain/heldout/start.json").read_text())["bits_per_byte"]
        of = results(world)["bits_per_byte"]["start" if weights == "Q8_0" else "base"]
        assert start == pytest.approx(of, rel=5e-3), "the weights that it was told to start from"
