"""Reading a page: every problem at once, each with its line; and where every value came from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fox.errors import RecipeError, UserError
from fox.recipe import Recipe, load_recipe

PAGE = """\
name = "small"

[source.texts]
path = "~/texts"

[source.chats]
path = "chats.jsonl"
kind = "chat"

[tokenizer]
vocab_size = 300

[model]
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 64

[optimizer]
peak_learning_rate = 1

[schedule]
warmup_tokens = 1e3
decay_tokens = 2e3

[stage.only]
tokens = 1e4
chunk_length = { text = 64, chats = 32 }
rows = 2
batch_tokens = 256
mix = { text = 1, chats = 0.5 }

[tune]
tokens = 5_000
chunk_length = 32
rows = 1
batch_tokens = 32
mix = { chat = 1 }

[tune.optimizer]
peak_learning_rate = 1e-3

[tune.schedule]
warmup_tokens = 0
decay_tokens = 0
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.toml"
    path.write_text(PAGE, encoding="utf-8")
    return path


def told(path: Path, *overrides: str) -> list[str]:
    """What the reader is told of the page at `path`, without the folder's name."""
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    assert error.value.exit_code == 2
    return str(error.value).replace(f"{path.parent}/", "").splitlines()


def told_of(tmp_path: Path, text: str | bytes) -> list[str]:
    path = tmp_path / "page.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return told(path)


def test_a_whole_page_is_read(page: Path) -> None:
    recipe = load_recipe(page).recipe
    only, tune = recipe.stage["only"], recipe.tune
    assert tune is not None
    assert (only.tokens, type(only.tokens), only.row_length, only.steps) == (10_000, int, 64, 39)
    assert only.mix == {"text": 1.0, "chats": 0.5} and only.chunk_length == {"text": 64, "chats": 32}
    assert (recipe.optimizer.peak_learning_rate, type(recipe.optimizer.peak_learning_rate)) == (1.0, float)
    assert recipe.source["texts"].path == "~/texts", "the stage that reads it expands it, not the recipe"
    assert (recipe.seed, recipe.model.head_dim, tune.chunk_length) == (0, None, 32)


def test_windows_line_ends_and_mark_are_read_alike(tmp_path: Path, page: Path) -> None:
    windows = tmp_path / "windows.toml"
    windows.write_bytes(b"\xef\xbb\xbf" + PAGE.replace("\n", "\r\n").encode())
    ours, theirs = load_recipe(page), load_recipe(str(windows))
    assert theirs.recipe == ours.recipe
    assert [row[2].replace("/windows.toml", "/page.toml") for row in theirs.rows()] == [row[2] for row in ours.rows()]


def test_rows_give_every_value_and_the_line_of_each_that_was_written(page: Path) -> None:
    rows = {key: (value, origin) for key, value, origin in load_recipe(page).rows()}
    lines = PAGE.splitlines()
    assert rows["name"] == ("small", f"{page}:1")
    assert rows["tokenizer.sample_bytes"] == (100_000_000, "default")
    assert rows["model.head_dim"] == (None, "default")
    assert rows["stage.only.mix.chats"] == (0.5, f"{page}:{lines.index('mix = { text = 1, chats = 0.5 }') + 1}")
    assert rows["tune.schedule.decay_tokens"] == (0, f"{page}:{len(lines)}")
    assert rows["eval.prompts"] == (["Hello! How are you today?", "What do you like to do?"], "default")
    assert set(rows) == leaves(load_recipe(page).recipe.model_dump())
    for key, (_, origin) in rows.items():
        if origin != "default":
            assert key.rpartition(".")[2] in lines[int(origin.rpartition(":")[2]) - 1]


def leaves(value: object, key: str = "") -> set[str]:
    if not isinstance(value, dict):
        return {key}
    return set().union(*(leaves(item, f"{key}.{part}" if key else part) for part, item in value.items()))


def test_a_run_without_tuning_has_it_as_a_default(tmp_path: Path) -> None:
    path = tmp_path / "page.toml"
    path.write_text(PAGE[: PAGE.index("[tune]")])
    assert ("tune", None, "default") in load_recipe(path).rows()


EVERYTHING_WRONG = """\
name = "../x"
sede = 1

[source.texts]
path = 5
kind = "chats"

[source.spare]
path = "c"
kind = "chat"

[tokenizer]
vocab_size = 100
sample_bytes = "30M"

[model]
hidden_size = 255
intermediate_size = 1.5
num_hidden_layers = 0
num_attention_heads = 4
num_key_value_heads = 3
max_position_embeddings = 128

[train]
compile = 1

[optimizer]
peak_learning_rate = nan

[schedule]
warmup_tokens = 100
decay_tokens = 2e6

[stage.one]
tokens = 1e6
chunk_length = 256
rows = 3
batch_tokens = 1000
mix = { text = 1, web = 2 }

[stage.two]
tokens = 1e5
chunk_length = []
rows = 1
mix = {}

[tune]
tokens = 5
chunk_length = 64
rows = 1
batch_tokens = 64
mix = { chat = 1 }
optimizer = 1e-3

[eval]
prompts = ["a", 2]
reply_top_p = 1.5
"""


def test_all_problems_are_told_at_once_in_the_order_of_the_page(tmp_path: Path) -> None:
    assert told_of(tmp_path, EVERYTHING_WRONG) == [
        "page.toml:1  name = '../x': can't be a file's name, and it becomes one. "
        "Use letters, digits, '-', '_' and '.', and begin with a letter or digit.",
        "page.toml:2  sede: unknown key. Did you mean seed? "
        "(known: data, eval, license, model, name, optimizer, schedule, seed, source, stage, tokenizer, train, tune, version)",
        "page.toml:5  source.texts.path = 5: must be text in quotes. About path: A file, a folder, or `pip:NAME` "
        "for the files that an installed package carries; `~` is your home folder; or `top:NAME`, see data.quality.",
        "page.toml:6  source.texts.kind = 'chats': must be 'text' or 'chat'. Did you mean chat? "
        "About kind: Plain documents, or conversations with `messages`.",
        "page.toml:13  tokenizer.vocab_size = 100: must be at least 300. "
        "About vocab_size: Entries in all, special tokens and the 256 bytes included.",
        "page.toml:14  tokenizer.sample_bytes = '30M': must be a whole number. "
        "About sample_bytes: How much training text to learn the merges from; more than this is sampled by document.",
        "page.toml:17  model.hidden_size = 255: is no multiple of num_attention_heads = 4. "
        "Try -o model.hidden_size=256, or give model.head_dim.",
        "page.toml:18  model.intermediate_size = 1.5: must be a whole number. "
        "About intermediate_size: Width of the feed-forward layer.",
        "page.toml:19  model.num_hidden_layers = 0: must be above 0. "
        "About num_hidden_layers: How many blocks of attention and feed-forward follow each other.",
        "page.toml:21  model.num_key_value_heads = 3: does not divide num_attention_heads = 4. Use one of 1, 2, 4.",
        "page.toml:25  train.compile = 1: must be true or false. "
        "About compile: Compile the model's blocks with torch.compile, from the first step on.",
        "page.toml:28  optimizer.peak_learning_rate = nan: must be a finite number. "
        "About peak_learning_rate: The learning rate after warm-up and before the decay.",
        "page.toml:32  schedule.decay_tokens = 2000000: together with warmup_tokens = 100 is more than "
        "the 1100000 tokens there are. Make both together at most 1100000.",
        "page.toml:36  stage.one.chunk_length = 256: is longer than model.max_position_embeddings = 128. "
        "Shorten the chunks, or try -o model.max_position_embeddings=256.",
        "page.toml:38  stage.one.batch_tokens = 1000: is no multiple of rows x chunk length = 768. "
        "Try -o stage.one.batch_tokens=768, or change stage.one.rows.",
        "page.toml:39  stage.one.mix.web: is neither a source nor a kind. Sources: texts, spare. Kinds: text, chat.",
        "page.toml:41  stage.two.batch_tokens: is missing. Add it. About batch_tokens: Tokens a step of the optimiser.",
        "page.toml:43  stage.two.chunk_length = []: must be a whole number above 0, or a table of such by source or "
        "kind: { text = 512, chat = 256 }, or shares of tokens by length: { 128 = 0.3, 256 = 0.7 }. "
        "About chunk_length: Tokens that see each other, at most; one number, one for each source or kind, "
        "or shares of tokens by length: `{ 128 = 0.3, 256 = 0.7 }`.",
        "page.toml:45  stage.two.mix = {}: must not be empty. About mix: Relative weights of sources, or of kinds: "
        "`text` stands for all text sources that the table does not name.",
        "page.toml:47  tune.schedule: is missing. Add it. [tune.schedule] needs warmup_tokens.",
        "page.toml:53  tune.optimizer = 0.001: must be a table with keys of its own. "
        "[tune.optimizer] needs peak_learning_rate.",
        "page.toml:56  eval.prompts[1] = 2: must be text in quotes. "
        "About prompts: Opening lines of the sample chats in the report.",
        "page.toml:57  eval.reply_top_p = 1.5: must be at most 1. "
        "About reply_top_p: Sample replies draw from the likeliest tokens that together have this probability.",
    ]


def test_an_empty_page_is_told_what_it_needs(tmp_path: Path) -> None:
    assert told_of(tmp_path, "") == [
        "page.toml  name: is missing. Add it. About name: The run's folder below runs/.",
        "page.toml  source: is missing. Add it. [source.NAME] needs path.",
        "page.toml  tokenizer: is missing. Add it. [tokenizer] needs vocab_size.",
        "page.toml  model: is missing. Add it. [model] needs hidden_size, intermediate_size, num_hidden_layers, "
        "num_attention_heads, num_key_value_heads, max_position_embeddings.",
        "page.toml  optimizer: is missing. Add it. [optimizer] needs peak_learning_rate.",
        "page.toml  schedule: is missing. Add it. [schedule] needs warmup_tokens.",
        "page.toml  stage: is missing. Add it. [stage.NAME] needs tokens, chunk_length, rows, batch_tokens, mix.",
    ]


@pytest.mark.parametrize("key", sorted(Recipe.model_fields.keys() - {"name", "license"}))
@pytest.mark.parametrize(
    "value", ["'x'", "[]", "[[]]", "true", "1979-05-27", "nan", "{ x = { y = [1] } }", "{ x = 1 }"]
)
def test_whatever_stands_where_a_table_should_is_told_and_never_a_traceback(page: Path, key: str, value: str) -> None:
    assert any(line.startswith("-o") and key in line for line in told(page, f"{key}={value}"))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("tokens = 1e4", "tokens = true", "stage.only.tokens = true: must be a whole number."),
        ("tokens = 1e4", "tokens = inf", "stage.only.tokens = inf: must be a whole number."),
        ("tokens = 1e4", "tokens = 1e300", "must be at most 9223372036854775807."),
        ("tokens = 1e4", f"tokens = 0x{'f' * 6000}", "stage.only.tokens = a number of 24000 bits: must be at most"),
        ("rate = 1\n", f"rate = {'9' * 400}\n", "must be a number."),
        ("text = 1,", "text = true,", "stage.only.mix.text = true: must be a number."),
        ("text = 1,", "text = 0,", "stage.only.mix.text = 0: must be above 0."),
        ("text = 64", "text = -64", "must be a whole number above 0, or a table of such"),
        ("{ text = 64, chats = 32 }", "{}", "stage.only.chunk_length = {}: must be a whole number above 0"),
        ("{ text = 64, chats = 32 }", f"0x{'f' * 100}", "must be a whole number above 0"),
        ("num_attention_heads = 4", "num_attention_heads = 4e18", "model.num_key_value_heads = 2: "),
        ('"~/texts"', '["~/texts"]', "source.texts.path = ['~/texts']: must be text in quotes."),
    ],
)
def test_values_of_the_wrong_kind(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in PAGE
    if "4e18" in new:
        new, line = "num_attention_heads = 3_999_999_999_999_999_999", "Use one of 1, 3"
    assert any(line in found for found in told_of(tmp_path, PAGE.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb = = 2\n", "page.toml:2  recipe: is not TOML: invalid value, at column 5 of 'b = = 2'. Mend that line."),
        ("a = 12,000", "recipe: is not TOML: expected newline or end of document after a statement, at column 7 of"),
        ('a = """x\n\n', "page.toml:3  recipe: is not TOML: "),
        ("a = [1,\n", "page.toml:2  recipe: is not TOML: "),
        ("a = 1\ra = 2", "page.toml:1  recipe: is not TOML: "),
        ("a = 1\na = 2\n", "page.toml:2  recipe: is not TOML: cannot overwrite a value, at column"),
        (b"a = 1\nb = '\xff'\n", "page.toml:2  recipe: is not UTF-8 text. Save the file as UTF-8."),
        (b"\xff\xfea\x00", "page.toml:1  recipe: is not UTF-8 text. Save the file as UTF-8."),
        ("a = " + "1" * 5000, "recipe = 'page.toml': has a number of thousands of digits. Mend that number."),
        ("a = " + "[" * 5000, "recipe = 'page.toml': has brackets in brackets in brackets, hundreds deep. Write it flat."),
    ],
)  # fmt: skip
def test_a_page_that_can_not_be_parsed(tmp_path: Path, text: str | bytes, line: str) -> None:
    (only,) = told_of(tmp_path, text)
    assert only.startswith(line) or line in only


def test_a_page_that_can_not_be_read(tmp_path: Path, page: Path) -> None:
    assert told(tmp_path / "pag.toml") == ["recipe = 'pag.toml': there is no such file. There is page.toml."]
    assert told(tmp_path) == [f"recipe = '{tmp_path.name}': is a folder. There is {tmp_path.name}/page.toml."]
    assert told(page / "inner")[0].endswith("can't be read (Not a directory). Name a TOML file that you can read.")
    assert "can't be read (File name too long)" in told(tmp_path / ("x" * 300))[0]
    assert "can't be read (embedded null byte)" in told(tmp_path / "a\0b")[0]
    (tmp_path / "loop").symlink_to("loop")
    assert "can't be read (Too many levels" in told(tmp_path / "loop")[0]
    for number in range(20):
        (tmp_path / f"z{number:02}.toml").touch()
    assert told(tmp_path / "none")[0].endswith("z06.toml and 13 more.")


def test_a_page_without_permission(page: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    page.chmod(0)
    assert "can't be read (Permission denied)" in told(page)[0]


def test_all_of_the_problems_are_in_the_error(page: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(page, ["seed=x", "data.heldout=1"])
    assert [(problem.key, problem.value, problem.place) for problem in error.value.problems] == [
        ("seed", "x", "-o"),
        ("data.heldout", None, "-o"),
    ]
