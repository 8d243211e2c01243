"""`-o key=value`: how it is read, what it changes, and that its values are told as coming from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.errors import UserError
from fox.recipe import load_recipe
from fox.recipe.load import parse_override
from tests.unit.recipe.test_load_recipe import PAGE, page, told

__all__ = ["page"]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("stage.foundation.tokens=2e6", "stage.foundation.tokens", 2e6),
        ("seed=0x10", "seed", 16),
        (" seed = 1_000 ", "seed", 1000),
        ("train.compile=false", "train.compile", False),
        ("train.precision=bf16", "train.precision", "bf16"),
        ('train.precision="bf16"', "train.precision", "bf16"),
        ("schedule.decay_shape=1-sqrt", "schedule.decay_shape", "1-sqrt"),
        ("name=123", "name", "123"),
        ("name=true", "name", "true"),
        ("name=2024-01-01", "name", "2024-01-01"),
        ("name=", "name", ""),
        ("name='123'", "name", "123"),
        ('name="a\\u0062"', "name", "ab"),
        ("source.own.path=~/my documents #1", "source.own.path", "~/my documents #1"),
        ("source.own.path=a=b", "source.own.path", "a=b"),
        ("tokenizer.path=~/tokenizer", "tokenizer.path", "~/tokenizer"),
        ("source.own.path='it''s", "source.own.path", "'it''s"),
        ("stage.one.mix={ text = 1, chat = 0.5 }", "stage.one.mix", {"text": 1, "chat": 0.5}),
        ("stage.one.chunk_length={text=64}", "stage.one.chunk_length", {"text": 64}),
        ('eval.prompts=["Hi", "Ho"]', "eval.prompts", ["Hi", "Ho"]),
        ("seed=", "seed", ""),
        ("seed=1\nname='x'", "seed", "1\nname='x'"),  # a second line is not dropped: it makes the value text
        (f"seed={'1' * 5000}", "seed", "1" * 5000),
        (f"seed={'[' * 5000}", "seed", "[" * 5000),
    ],
    ids=lambda text: repr(text)[:40],
)
def test_a_value_is_toml_or_bare_text(override: str, key: str, value: object) -> None:
    parsed = parse_override(override)
    assert parsed == (tuple(key.split(".")), value)
    assert type(parsed[1]) is type(value)


def test_a_quoted_key_may_have_dots() -> None:
    assert parse_override('source."v1.5".path=x') == (("source", "v1.5", "path"), "x")
    assert parse_override("source . 'v1.5' . path=x") == (("source", "v1.5", "path"), "x")


@pytest.mark.parametrize(
    "name", ["", " ", ".", "a.", ".a", "a..b", "a b", "[a]", "[a]\nb", "a\nb", "a[0]", "a,b", "'a", "#", "ä"]
)
def test_what_is_no_key_is_told(page: Path, name: str) -> None:
    (line,) = told(page, f"{name}=1")
    assert line == (
        f"-o = {f'{name}=1'!r}: {name!r} is no key. Write -o key=value, for instance -o optimizer.peak_learning_rate=1e-3."
    )


@given(st.text(max_size=20), st.text(max_size=20))
def test_anything_is_read_or_told(name: str, value: str) -> None:
    try:
        key, _ = parse_override(f"{name}={value}")
    except UserError as error:
        assert error.problems[0].key == "-o"
    else:
        assert all(isinstance(part, str) for part in key) and key


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("tune", "-o = 'tune': has no '='. Write -o key=value, for instance -o optimizer.peak_learning_rate=1e-3."),
        ("''=1", '-o  "": unknown key. (known: data, eval, '),
        ("sede=1", "-o  sede: unknown key. Did you mean seed? (known: "),
        ("modle.hidden_size=1", "-o  modle: unknown key. Did you mean model? (known: "),
        ("stage.only.tokns=1", "-o  stage.only.tokns: unknown key. Did you mean tokens? (known: batch_ramp, batch_tokens, chunk_length, "),
        ("seed.x=3", "-o  seed = { x = 3 }: must be a whole number."),
        ("name.x=3", "-o  name.x = 3: name is a value, not a table with keys of its own. Write -o name=VALUE."),
        ("stage.only.tokens.x.y=3", "-o  stage.only.tokens.x.y = 3: stage.only.tokens is a value, not a table"),
        ("seed=true", "-o  seed = true: must be a whole number."),
        ("seed=1.5", "-o  seed = 1.5: must be a whole number."),
        ("seed=many", "-o  seed = 'many': must be a whole number."),
        ("seed=-1", "-o  seed = -1: must be at least 0."),
        ("seed=2024-01-01", "-o  seed = 2024-01-01: must be a whole number."),
        ("train.compile=1", "-o  train.compile = 1: must be true or false."),
        ("train.compile=True", "-o  train.compile = 'True': must be true or false."),
        ("eval.reply_temperature=true", "-o  eval.reply_temperature = true: must be a number."),
        ("eval.reply_temperature=nan", "-o  eval.reply_temperature = nan: must be a finite number."),
        ("eval.reply_temperature=inf", "-o  eval.reply_temperature = inf: must be a finite number."),
        ("optimizer.weight_decay=inf", "-o  optimizer.weight_decay = inf: must be a finite number."),
        ("optimizer.beta1=nan", "-o  optimizer.beta1 = nan: must be a finite number."),
        ("data.heldout_fraction=0.5", "-o  data.heldout_fraction = 0.5: must be below 0.5."),
        ("eval.prompts=Hello", "-o  eval.prompts = 'Hello': must be a list in square brackets."),
        ("train.precision=fp8", "-o  train.precision = 'fp8': must be 'auto' or 'bf16' or 'float32' or 'bf16-weights'."),
        ("train.precision=float", "-o  train.precision = 'float': must be 'auto' or 'bf16' or 'float32' or 'bf16-weights'. Did you mean float32?"),
        ("tune=1", "-o  tune = 1: must be a table with keys of its own. [tune] needs tokens, chunk_length, "),
        ("source.texts.path=\udcff", "-o = 'source.texts.path=\\udcff': is not UTF-8 text."),
    ],
)  # fmt: skip
def test_a_wrong_override_is_told(page: Path, override: str, line: str) -> None:
    assert told(page, override)[0].startswith(line)


def test_all_wrong_overrides_are_told_at_once_beside_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.toml"
    path.write_text(PAGE.replace("vocab_size = 300", "vocab_size = 299"))
    lines = told(path, "x", "name.y=1", "seed=z", "model.hidden_size=65")
    assert [line.split(":")[0] for line in lines] == [
        "-o = 'x'",
        "-o  name.y = 1",
        "-o  seed = 'z'",
        "-o  model.hidden_size = 65",
        "page.toml",
    ]


def test_an_override_mends_what_is_wrong_on_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.toml"
    path.write_text(PAGE.replace("vocab_size = 300", "vocab_size = 299"))
    assert load_recipe(path, ["tokenizer.vocab_size=3e2"]).recipe.tokenizer.vocab_size == 300


def test_the_last_of_two_overrides_holds(page: Path) -> None:
    assert load_recipe(page, ["seed=1", "seed=2"]).recipe.seed == 2


def test_a_whole_number_where_a_float_is_meant(page: Path) -> None:
    loaded = load_recipe(page, ["eval.reply_temperature=1", "stage.only.mix={ text = 1, chats = 2 }"]).recipe
    assert (loaded.eval.reply_temperature, loaded.stage["only"].mix) == (1.0, {"text": 1.0, "chats": 2.0})


def origins(page: Path, *overrides: str) -> dict[str, str]:
    return {key: origin for key, _, origin in load_recipe(page, overrides).rows()}


def test_only_what_was_overridden_comes_from_there(page: Path) -> None:
    before, after = origins(page), origins(page, "seed=1", "stage.only.mix.text=2", "model.hidden_size=64")
    changed = {key for key in after if after[key] != before[key]}
    assert changed == {"seed", "stage.only.mix.text", "model.hidden_size"}
    assert {after[key] for key in changed} == {"-o"}


def test_a_table_from_the_command_line_has_defaults_that_are_defaults(page: Path) -> None:
    found = origins(page, "source.own={ path = 'x' }", "eval={}", "tokenizer={vocab_size=400}")
    assert (found["source.own.path"], found["source.own.kind"]) == ("-o", "default")
    assert (found["eval.reply_top_p"], found["tokenizer.vocab_size"], found["tokenizer.sample_bytes"]) == (
        "default",
        "-o",
        "default",
    )


def test_a_table_that_is_replaced_keeps_none_of_its_lines(page: Path) -> None:
    found = origins(page, "stage.only.chunk_length=32", "stage.only.mix={ chats = 1, texts = 1 }")
    assert {
        key: origin for key, origin in found.items() if key.startswith(("stage.only.mix.", "stage.only.chunk"))
    } == {
        "stage.only.chunk_length": "-o",
        "stage.only.mix.chats": "-o",
        "stage.only.mix.texts": "-o",
    }


def test_a_source_from_the_command_line(page: Path) -> None:
    loaded = load_recipe(page, ["source.own.path=~/documents"])
    assert loaded.recipe.source["own"].path == "~/documents"
    assert loaded.recipe.sources_of("text", loaded.recipe.stage["only"].mix) == ["texts", "own"]


def test_what_a_table_from_the_command_line_lacks_is_told_there(page: Path) -> None:
    assert told(page, "source.own.kind=chat")[0].startswith("-o  source.own.path: is missing. Add it.")
    assert {line.split(":")[0] for line in told(page, "stage.more.tokens=5")} == {
        f"-o  stage.more.{key}" for key in ("chunk_length", "rows", "batch_tokens", "mix")
    }


def test_a_name_with_dots_is_told_and_mended_in_quotes(page: Path) -> None:
    (line,) = told(
        page, "source.'v1.5'={ path = 'x' }", "stage.only.mix={ texts = 1, chats = 1 }", "stage.only.chunk_length=64"
    )
    assert line == (
        '-o  source."v1.5": is in no stage\'s mix, so nothing would be learnt from it. Try -o stage.only.mix."v1.5"=1.'
    )
