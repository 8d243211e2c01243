"""The best documents of a source become a source of the last stage: by one process or many, stopped or not, the same to the last bit."""

from __future__ import annotations

import json
import random
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pyarrow.parquet import read_table
from rich.console import Console

from fox.artifacts import sha256_of
from fox.data.corpus.make import make_corpus
from fox.errors import Failure
from fox.formats.token_shards import Shard
from fox.recipe import load_recipe
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import encode_chats
from tests.journey.micro_run import HERE, fox, kill_when

CORPUS = Path("runs/micro/corpus")
QUALITY = """
[source.best]
path = "top:stories"

[data.executor]
workers = 2

[data.quality]
good = ["good/*.jsonl"]
share = 0.1
"""
FILES, STORIES, EVERY = 4, 500, 10


def write_world(folder: Path) -> None:
    """Stories in common words of which every tenth is in the words of the examples too, and chats."""
    draw = random.Random(2)
    common = [bytes(draw.choices(b"abcdefgh", k=draw.randint(3, 8))).decode() for _ in range(600)]
    wanted = [bytes(draw.choices(b"mnopqrst", k=draw.randint(3, 8))).decode() for _ in range(300)]

    def story(is_wanted: bool) -> str:
        words = draw.choices(common, k=60) + (draw.choices(wanted, k=30) if is_wanted else [])
        draw.shuffle(words)
        return " ".join(words)

    (folder / "text").mkdir()
    (folder / "good").mkdir()
    for number in range(FILES):
        rows = [{"text": story(at % EVERY == 3), "title": str(at % EVERY == 3)} for at in range(STORIES)]
        (folder / f"text/{number}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    good = [json.dumps({"text": story(True)}) for _ in range(200)]
    (folder / "good/examples.jsonl").write_text("\n".join(good))
    chats = [
        {"messages": [{"role": role, "content": story(False)[:60]} for role in ("user", "assistant")]}
        for _ in range(60)
    ]
    (folder / "chats.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    page = (HERE / "micro.toml").read_text().replace("[data]\n", '[data]\nunlicensed = "keep"\n')
    last, mix = page.split("[stage.last]")
    mix = mix.replace("{ text = 0.5, chat = 0.5 }", "{ best = 0.4, text = 0.3, chat = 0.3 }", 1)
    (folder / "micro.toml").write_text(f"{last}[stage.last]{mix}{QUALITY}")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_world(tmp_path)
    return tmp_path


def made(folder: Path) -> dict[str, str]:
    files = sorted(path for path in (folder / CORPUS).rglob("*") if path.is_file())
    return {str(path.relative_to(folder / CORPUS)): sha256_of(path) for path in files}


def corpus(folder: Path, *words: str) -> dict[str, str]:
    fox(folder, "corpus", "micro.toml", *words)
    return made(folder)


def rows(folder: Path, source: str) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / CORPUS / source).glob("*")) for row in read_table(path).to_pylist()]


def test_the_planted_ones_are_moved(world: Path) -> None:
    corpus(world)
    best, rest = rows(world, "best"), rows(world, "stories")
    assert len(best) == FILES * STORIES // EVERY and len(best) + len(rest) == FILES * STORIES
    assert sum(row["title"] == "True" for row in best) >= 0.9 * len(best)
    assert not {row["id"] for row in best} & {row["id"] for row in rest}
    assert min(row["quality"] for row in best) >= max(row["quality"] for row in rest)


def made_here(world: Path, folder: Path, console: Console, **values: object) -> dict[str, Any]:
    """The corpus alone, in this process, and with a task for each file."""
    recipe = load_recipe(world / "micro.toml", [f"{key}={json.dumps(value)}" for key, value in values.items()]).recipe
    facts = make_corpus(recipe, None, folder, console)
    del facts["seconds"]  # never the same twice
    return facts


@pytest.fixture
def tasks(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("fox.data.corpus.tasks.TASK_BYTES", 1)
    monkeypatch.chdir(world)
    return world


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): sha256_of(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".work" not in p.parts
    }


@pytest.mark.parametrize("duplicates", [{}, {"data.duplicates.near": False}])
def test_it_is_the_same_by_one_and_by_many_and_wherever_it_stopped(
    tasks: Path, monkeypatch: pytest.MonkeyPatch, duplicates: dict[str, object]
) -> None:
    said = Console(file=StringIO(), width=500)
    facts = made_here(tasks, tasks / "many", said, **duplicates)
    whole = contents(tasks / "many")
    assert len([name for name in whole if name.startswith("best/")]) == FILES
    assert "of 200 good and 2,000 ordinary examples, 220 were held out" in said.file.getvalue()  # type: ignore[attr-defined]
    made_here(tasks, tasks / "one", said, **{"data.executor.workers": 1, **duplicates})
    assert contents(tasks / "one") == whole
    for name in ("learn", "_ranking", "write_json", "keep"):  # each round and what is between them

        def fail(*_: object, **__: object) -> None:
            raise Failure("the disk is full")

        with monkeypatch.context() as broken, pytest.raises(Failure):
            broken.setattr(f"fox.data.corpus.best.{name}", fail)
            made_here(tasks, tasks / "stopped", said, **duplicates)
        assert (tasks / "stopped/.work").is_dir()
    assert made_here(tasks, tasks / "stopped", said, **duplicates) == facts
    assert contents(tasks / "stopped") == whole
    moved = facts["sources"]["stories"]["funnel"]["moved"]["best"]
    assert moved == facts["sources"]["best"]["funnel"]["read"] == facts["sources"]["best"]["funnel"]["kept"]
    assert facts["sources"]["best"]["reading"]["good"] == moved["documents"] == FILES * STORIES // EVERY
    assert facts["quality"]["sources"]["stories"]["documents"] == FILES * STORIES
    funnel = json.loads((tasks / "many/quality.json").read_bytes())["sources"]["stories"]
    assert len(funnel["first"]) == len(funnel["last"]) == 5 and sum(funnel["bars"]) == FILES * STORIES
    assert funnel["first"][0]["score"] > funnel["threshold"] > funnel["last"][0]["score"]


def test_bad_examples_stand_for_the_others_where_they_are_named(tasks: Path) -> None:
    bad = [json.loads(line) for line in (tasks / "text/0.jsonl").read_text().splitlines()]
    (tasks / "bad.jsonl").write_text("\n".join(json.dumps(row) for row in bad if row["title"] == "False"))
    said = Console(file=StringIO(), width=500)
    facts = made_here(tasks, tasks / "made", said, **{"data.quality.bad": ["bad.jsonl"], "data.quality.share": 0.05})
    assert facts["quality"]["examples"] == {"good": 200, "ordinary": 450}
    assert facts["quality"]["held_out"]["auc"] > 0.99
    best = [row for path in (tasks / "made/best").glob("*") for row in read_table(path).to_pylist()]
    assert len(best) == FILES * STORIES // 20 and all(row["title"] == "True" for row in best)


def test_examples_that_tell_nothing_are_warned_of(tasks: Path) -> None:
    (tasks / "good/examples.jsonl").write_text((tasks / "text/1.jsonl").read_text())
    said = Console(file=StringIO(), width=500)
    made_here(tasks, tasks / "made", said)
    told = said.file.getvalue()  # type: ignore[attr-defined]
    assert "warning: that is little more than chance" in told
    assert "of 500 good and 1,500 ordinary examples" in told  # the good ones don't stand for the ordinary


def test_a_corpus_that_was_begun_with_other_examples_is_not_gone_on_with(world: Path) -> None:
    kill_when(lambda: any((world / CORPUS).glob(".work/quality/*")), world, "corpus", "micro.toml")
    (world / "good/more.jsonl").write_text(json.dumps({"text": "one more"}))
    _, errors = fox(world, "corpus", "micro.toml", expect=2)
    assert "examples" in errors and "was begun in runs/micro" in " ".join(errors.split())


def test_the_last_stage_reads_the_best_and_chats_through_their_template(world: Path) -> None:
    fox(world, "run", "micro.toml")
    run = world / "runs/micro"
    said = fox(world, "data", "inspect", "runs/micro", "--step", "18")[0]
    assert "best: 40.00% of the mixture" in said and "chats: 30.00% of the mixture" in said
    assert re.search(r"^row \d+: best, ", said, re.MULTILINE) and re.search(r"^row \d+: chats, ", said, re.MULTILINE)
    tokenizer, shard = Tokenizer.load(run / "tokenizer"), Shard(run / "data/chats.train.ds", 420)
    learnt = [shard.tokens[slice(*shard.span(number))].tolist() for number in range(len(shard))]
    of_corpus = encode_chats(tokenizer, [tuple(row["messages"]) for row in rows(world, "chats")])
    assert learnt and all(chat in [encoded.ids.tolist() for encoded in of_corpus] for chat in learnt)
    facts = json.loads((run / "manifests/data.json").read_bytes())["facts"]["sources"]
    assert facts["best"]["documents"] == FILES * STORIES // EVERY
    out, _ = fox(world, "data", "verify", "runs/micro")
    assert "all that was made is as it was made" in out
    fox(world, "data", "report", "runs/micro")
    assert "moved to best" in (run / "corpus.html").read_text()
