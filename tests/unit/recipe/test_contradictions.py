"""Values that cannot both hold are found, and doing what the mend says mends them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fox.recipe import load_recipe
from tests.unit.recipe.test_load_recipe import page, told

__all__ = ["page"]

ONE_TEXT = "stage.only.mix={ texts = 1, chats = 1 }"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.hidden_size=66"], "model.hidden_size = 66: is no multiple of num_attention_heads = 4."),
        (["model.hidden_size=60"], "model.hidden_size = 60: makes heads of size 15, which is odd, and rotary positions"),
        (["model.head_dim=7"], "model.head_dim = 7: is odd, and rotary positions turn pairs."),
        (["stage.only.batch_tokens=300"], "stage.only.batch_tokens = 300: is no multiple of rows x chunk length = 128."),
        (["stage.only.batch_tokens=1"], "stage.only.batch_tokens = 1: is no multiple of rows x chunk length = 128."),
        (["tune.batch_tokens=33"], "tune.batch_tokens = 33: is no multiple of rows x chunk length = 32."),
        (["stage.only.chunk_length=128"], "stage.only.chunk_length = 128: is longer than model.max_position_embeddings = 64."),
        (["schedule.shape=cosine", "schedule.decay_tokens=5"], "schedule.decay_tokens = 5: changes nothing beside schedule.shape = 'cosine'."),
        (["schedule.shape=cosine", "schedule.decay_tokens=0"], None),
        (["optimizer.name=adafactor", "optimizer.beta1=0.8"], "optimizer.beta1 = 0.8: changes nothing beside optimizer.name = 'adafactor'."),
        (["tune.optimizer.momentum=0.8"], "tune.optimizer.momentum = 0.8: changes nothing beside tune.optimizer.name = 'adamw'."),
        (["train.precision=bf16-weights", "stage.only.batch_tokens=256", "tune.batch_tokens=32"], "stage.only.batch_tokens = 256: is more than one pass of rows x chunk length = 128, and in bf16"),
        (["train.checkpoint_every_steps=40", "train.milestone_every_steps=100"], "train.milestone_every_steps = 100: is no multiple of train.checkpoint_every_steps = 40, and"),
        (["train.checkpoint_every_steps=40", "train.milestone_every_steps=7"], "train.milestone_every_steps = 7: is no multiple of train.checkpoint_every_steps = 40, and"),
        (["train.checkpoint_every_steps=40", "train.milestone_every_steps=120"], None),
        (["train.average_checkpoints=20"], "train.average_checkpoints = 20: are more than the"),
        (["train.average_checkpoints=37", "train.checkpoint_every_steps=1"], "train.average_checkpoints = 37: are more than the 36 that are saved in the 36 steps after the warm-up"),
        (["stage.only.batch_tokens=1280", "stage.only.batch_ramp={ start = 300, tokens = 1000 }"], "stage.only.batch_ramp.start = 300: is no multiple of rows x chunk length = 128."),
        (["source.own={ path = 'x', kind = 'chat' }"], None),  # the tuning takes every chat
        (["source.own.path=x", ONE_TEXT, "stage.only.chunk_length=64"], "source.own: is in no stage's mix"),
    ],
)  # fmt: skip
def test_what_the_mend_proposes_mends(page: Path, overrides: list[str], line: str | None) -> None:
    if line is None:
        load_recipe(page, overrides)
        return
    lines = told(page, *overrides)
    assert len(lines) == 1 and lines[0].startswith(f"-o  {line}")
    (proposed,) = re.findall(r"-o (\S+=\S+?)(?:[.,] |[.,]$)", lines[0])
    load_recipe(page, [*overrides, proposed])


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.num_key_value_heads=3"], "model.num_key_value_heads = 3: does not divide num_attention_heads = 4. Use one of 1, 2, 4."),
        (["stage.only.mix.web=1"], "stage.only.mix.web: is neither a source nor a kind. Sources: texts, chats. Kinds: text, chat."),
        (["stage.only.mix={ texts = 1, text = 1 }", "stage.only.chunk_length=64"], "stage.only.mix.text: stands for no source. Add a source of kind 'text', or leave it out."),
        (["tune.mix.text=1"], "tune.mix.text: brings in texts, of kind 'text', and tuning learns from replies alone. Name sources of kind 'chat'."),
        (["tune.mix.texts=1"], "tune.mix.texts: brings in texts, of kind 'text', and tuning learns from replies alone. Name sources of kind 'chat'."),
        (["schedule.decay_tokens=9001"], "schedule.decay_tokens = 9001: together with warmup_tokens = 1000 is more than the 10000 tokens there are. Make both together at most 10000."),
        (["tune.schedule.warmup_tokens=1", "tune.schedule.decay_tokens=5000"], "tune.schedule.decay_tokens = 5000: together with warmup_tokens = 1 is more than the 5000 tokens there are. Make both together at most 5000."),
        (["stage.only.chunk_length={ text = 64 }"], "stage.only.chunk_length: says nothing of chats, which is in the mix. Add chats = 64."),
        (["stage.only.chunk_length.chat=64"], "stage.only.chunk_length.chat = 64: is not in the mix. Leave it out, or add it to the mix."),
        (["stage.only.chunk_length={ 64 = 1, 48 = 1 }"], "stage.only.chunk_length.48: does not divide the longest chunk, 64, and rows are cut evenly. Use a divisor of 64."),
        (["stage.only.chunk_length.chats={ 32 = 1, 48 = 2 }"], "stage.only.chunk_length.chats.48: does not divide the longest chunk, 64, and rows are cut evenly. Use a divisor of 64."),
        (["stage.only.batch_ramp={ start = 256, tokens = 1000 }"], "stage.only.batch_ramp.start = 256: is not below batch_tokens = 256, to which steps grow. Begin with smaller steps, or leave batch_ramp out."),
        (["stage.only.batch_ramp={ start = 128, tokens = 20000 }"], "stage.only.batch_ramp.tokens = 20000: is more than the stage's 10000, so that batch_tokens is never reached. Make it at most 10000."),
        (["tune.mix_follows=odm"], "tune.mix_follows = 'odm': has nothing to choose from: chats is all there is in the mix. Leave it out, or add sources."),
        (["stage.only.mix_every_steps=7"], "stage.only.mix_every_steps = 7: changes nothing beside a mixture that follows nothing. Try -o stage.only.mix_every_steps=20."),
        (["source.2024.path=x", "stage.only.mix.2024=1"], "source.2024: is a number, which chunk_length would take for a length. Call it s2024, say."),
        (["stage.only.chunk_length.chats=48"], "stage.only.chunk_length.chats = 48: does not divide the longest chunk, 64, and rows are cut evenly. Use a divisor of 64."),
        (["source.text.path=x"], "source.text: text is a kind, not a name. Call it texts, say."),
        (["schedule={ warmup_tokens = 10 }"], "schedule.decay_tokens: is missing, and a schedule of shape wsd needs it. Give it, or 0."),
        (["schedule.shape=constant", "schedule.decay_tokens=0", "schedule.final_fraction=0.1"], "schedule.final_fraction = 0.1: changes nothing beside schedule.shape = 'constant'. Try -o schedule.final_fraction=0.0."),
        (["stage.base.tokens=1000"], "stage.base: base is what the results call a model. Give the stage another name."),
    ],
)  # fmt: skip
def test_each_contradiction_is_told(page: Path, overrides: list[str], line: str) -> None:
    assert f"-o  {line}" in told(page, *overrides)


@pytest.mark.parametrize("name", ["../x", "a/b", ".", "..", "", ".hidden", "-rf", "a b", "a\tb", "a\0", "~", "C:", "*"])
def test_a_name_that_is_no_file_name_is_told_wherever_it_stands(page: Path, name: str) -> None:
    reason = "can't be a file's name, and it becomes one. Use letters, digits"
    assert told(page, f"name={name}")[0].startswith(f"-o  name = {name!r}: {reason}")
    key = f'"{name}"'.replace("\t", "\\t").replace("\0", "\\u0000")
    for table in ("source", "stage"):
        lines = told(page, f"{table}.{key}={{}}")
        assert any(f" = {name!r}: {reason}" in line and line.startswith(f"-o  {table}.") for line in lines)


@pytest.mark.parametrize("name", ["a", "v1.5", "mökki", "模型", "_x", "1-2", "x" * 100])
def test_a_name_that_is_a_file_name_may_stand(page: Path, tmp_path: Path, name: str) -> None:
    assert load_recipe(page, [f"name={name}"]).recipe.name == name
    (tmp_path / f"{name}.manifest.json").touch()


def test_a_name_too_long_for_a_file_is_told(page: Path) -> None:
    assert "is longer than 100 bytes, and becomes a file's name. Shorten it." in told(page, f"name={'模' * 34}")[0]


def test_contradictions_are_told_beside_faults_that_do_not_touch_them(page: Path) -> None:
    lines = told(
        page, "model.hidden_size=x", "model.num_key_value_heads=3", "stage.only.rows=0", "stage.only.chunk_length=64", "stage.only.mix.web=1", "stage.two=5"
    )  # fmt: skip
    assert {line.split(":")[0] for line in lines} == {
        "-o  model.hidden_size = 'x'",
        "-o  stage.only.rows = 0",
        "-o  stage.two = 5",
        "-o  model.num_key_value_heads = 3",
        "-o  stage.only.mix.web",
    }


def test_a_fault_brings_no_contradiction_of_its_own(page: Path) -> None:
    """A faulty head_dim once counted as none, so that hidden_size was blamed; a faulty mix left its sources unused."""
    assert len(told(page, "model.hidden_size=66", "model.head_dim=x")) == 1
    assert len(told(page, "stage.only.mix={ texts = 'x' }", "tune.mix=5")) == 2
    assert len(told(page, "stage=5")) == 1
    assert len(told(page, "source=5")) == 1
