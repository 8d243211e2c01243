"""From documents to shards: each once, on one side of the split, wherever it lies; and which files were read."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from fox.data.decontaminate import Questions, question_files
from fox.data.inventory import fingerprints, take_inventory
from fox.data.readers import SourceReader
from fox.data.shards import shard_path, training_texts, write_shards
from fox.errors import UserError
from fox.formats.token_shards import Shard
from fox.progress import Meter
from fox.recipe import Recipe
from fox.tokenizer import Tokenizer

METER = Meter("data", None, "bytes")


def recipe_of(heldout_fraction: float = 0.2, sample_bytes: int = 10**8, **paths: str) -> Recipe:
    stage = {"tokens": 100, "chunk_length": 10, "rows": 1, "batch_tokens": 10, "mix": {"text": 1.0}}
    return Recipe.model_validate(
        {
            "name": "corpus",
            "source": {
                name: {"path": path, "kind": "chat" if name == "talk" else "text"} for name, path in paths.items()
            },
            "data": {"heldout_fraction": heldout_fraction},
            "tokenizer": {"vocab_size": 400, "sample_bytes": sample_bytes},
            "model": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "max_position_embeddings": 64,
            },
            "optimizer": {"peak_learning_rate": 1.0},
            "schedule": {"warmup_tokens": 0, "decay_tokens": 0},
            "stage": {"only": stage},
        }
    )


def text(number: int) -> str:
    return f"The fox no. {number} ran over the dog.\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03}.txt").write_text(text(number))
    return folder


def sides(recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> dict[str, Counter[str]]:
    """The texts of each shard of a recipe's sources, by `NAME.SPLIT`."""
    folder.mkdir()
    write_shards(recipe, tokenizer, SourceReader(recipe), folder, METER)
    return {
        f"{name}.{split}": Counter(
            tokenizer.decode(tokens.tolist())
            for tokens, _ in Shard(shard_path(folder, name, split), tokenizer.vocab_size).documents()
        )
        for name in recipe.source
        for split in ("train", "heldout")
    }


def test_every_document_is_once_on_one_side(texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    (texts / "again.txt").write_text(text(5))
    found = sides(recipe_of(own=str(texts)), tiny_tokenizer, tmp_path / "data")
    assert found["own.train"] + found["own.heldout"] == Counter(text(number) for number in range(200))
    assert 20 < found["own.heldout"].total() < 60


def test_a_document_is_framed_by_its_begin_and_end(texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_shards(recipe := recipe_of(own=str(texts)), tiny_tokenizer, SourceReader(recipe), tmp_path, METER)
    for tokens, is_learnt in Shard(shard_path(tmp_path, "own", "train"), 400).documents():
        assert (tokens[0], tokens[-1]) == (tiny_tokenizer.bos_id, tiny_tokenizer.eos_id)
        assert not {tiny_tokenizer.bos_id, tiny_tokenizer.eos_id} & set(tokens[1:-1].tolist())
        assert is_learnt is None


def test_neither_names_nor_order_nor_company_move_a_document_to_the_other_side(
    texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    before = sides(recipe_of(own=str(texts)), tiny_tokenizer, tmp_path / "before")
    draw = random.Random(1)
    for path in list(texts.iterdir()):
        path.rename(texts / f"{draw.random()}.txt")
    for number in range(500, 600):
        (texts / f"{number}.txt").write_text(text(number))
    after = sides(recipe_of(own=str(texts)), tiny_tokenizer, tmp_path / "after")
    for side in ("own.train", "own.heldout"):
        assert before[side] <= after[side]


def test_more_held_out_holds_out_the_same_and_more(texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    heldout = [
        sides(recipe_of(fraction, own=str(texts)), tiny_tokenizer, tmp_path / str(fraction))["own.heldout"]
        for fraction in (0.1, 0.2, 0.4)
    ]
    assert heldout[0] < heldout[1] < heldout[2]


def test_what_two_sources_share_is_in_the_first_alone(texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for number in range(150, 300):
        (other / f"{number}.txt").write_text(text(number))
    folder = tmp_path / "data"
    folder.mkdir()
    facts = write_shards(
        recipe := recipe_of(own=str(texts), other=str(other)), tiny_tokenizer, SourceReader(recipe), folder, METER
    )
    assert (facts["own"].duplicates, facts["other"].duplicates) == (0, 50)
    told = facts["other"].as_dict()
    assert told["documents"] == 100 and told["reading"]["good"] == 150


def test_chats_carry_what_is_learnt(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    chats = [
        [{"role": "user", "content": f"no. {n}?"}, {"role": "assistant", "content": f"{n} dogs"}] for n in range(40)
    ]
    path.write_text("".join(f"{json.dumps({'messages': chat})}\n" for chat in chats))
    facts = write_shards(recipe := recipe_of(talk=str(path)), tiny_tokenizer, SourceReader(recipe), tmp_path, METER)
    said = set()
    for tokens, is_learnt in Shard(shard_path(tmp_path, "talk", "train"), 400).documents():
        assert is_learnt is not None
        said.add(tiny_tokenizer.decode(tokens[is_learnt].tolist()))
        assert tokens[is_learnt][-1] == tiny_tokenizer.eos_id
    assert said < {f"{n} dogs" for n in range(40)} and len(said) == facts["talk"].train.documents


def test_facts_count_what_is_in_the_shards(texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    facts = write_shards(recipe := recipe_of(own=str(texts)), tiny_tokenizer, SourceReader(recipe), tmp_path, METER)[
        "own"
    ].as_dict()
    for split in ("train", "heldout"):
        shard = Shard(shard_path(tmp_path, "own", split), 400)
        assert (facts[split]["documents"], facts[split]["tokens"]) == (len(shard), len(shard.tokens))
    size = sum(path.stat().st_size for path in texts.iterdir())
    assert facts["train"]["bytes"] + facts["heldout"]["bytes"] == size
    tokens = facts["train"]["tokens"] + facts["heldout"]["tokens"]
    assert facts["bytes_per_token"] == pytest.approx(size / tokens, abs=1e-4)


def test_the_same_files_make_the_same_shards(texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        sides(recipe_of(own=str(texts)), tiny_tokenizer, tmp_path / name)
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert made[0] == made[1] and len(made[0]) == 6


def test_a_source_with_nothing_new_is_named(texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        write_shards(
            recipe := recipe_of(own=str(texts), same=str(texts)), tiny_tokenizer, SourceReader(recipe), tmp_path, METER
        )
    assert error.value.problems[0].key == "source.same.path"
    assert "no document to train on" in error.value.problems[0].problem


def test_the_tokenizer_never_sees_held_out_text_nor_a_text_twice(
    texts: Path, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (texts / "again.txt").write_text(text(5))
    recipe = recipe_of(own=str(texts))
    seen = Counter(training_texts(recipe, SourceReader(recipe), METER))
    assert seen == sides(recipe, tiny_tokenizer, tmp_path / "data")["own.train"]


def test_a_sample_is_about_as_large_as_asked_for_and_spread_evenly(texts: Path) -> None:
    size = sum(path.stat().st_size for path in texts.iterdir())
    whole = list(training_texts(recipe := recipe_of(own=str(texts)), SourceReader(recipe), METER))
    sample = list(
        training_texts(recipe := recipe_of(own=str(texts), sample_bytes=size // 4), SourceReader(recipe), METER)
    )
    assert set(sample) < set(whole)
    assert 0.15 < len(sample) / len(whole) < 0.35
    paths = sorted(texts.iterdir())
    first_half = {path.read_text() for path in paths[: len(paths) // 2]}
    assert 0.3 < sum(one in first_half for one in sample) / len(sample) < 0.7


def test_an_inventory_takes_each_files_hash_and_keeps_it_while_nothing_changes(texts: Path) -> None:
    recipe = recipe_of(own=str(texts))
    first = take_inventory(recipe, {}, METER)
    assert len(first["own"]) == 200 and all(entry["bytes"] for entry in first["own"].values())
    forged = {"own": {label: {**entry, "sha256": "known"} for label, entry in first["own"].items()}}
    assert take_inventory(recipe, forged, METER) == forged  # nothing was hashed again
    os.utime(texts / "003.txt", ns=(1, 1))
    touched = take_inventory(recipe, forged, METER)["own"]
    assert [label for label, entry in touched.items() if entry["sha256"] != "known"] == ["003.txt"]
    assert touched["003.txt"]["sha256"] == first["own"]["003.txt"]["sha256"]


def test_a_file_that_may_not_be_read_is_left_to_the_reader_to_set_aside() -> None:
    with tempfile.TemporaryDirectory() as name:  # not tmp_path: nobody else may enter that
        folder, secret = Path(name), Path(name, "secret.txt")
        secret.write_text("one")
        folder.chmod(0o755)
        recipe = recipe_of(own=name)
        readable = take_inventory(recipe, {}, METER)
        secret.chmod(0)
        root = os.geteuid() == 0
        if root:  # to whom nothing is forbidden
            os.seteuid(65534)
        try:
            inventory = take_inventory(recipe, {}, METER)
        finally:
            if root:
                os.seteuid(0)
    assert inventory == {"own": {"secret.txt": {"unreadable": "Permission denied"}}}
    assert fingerprints(inventory) != fingerprints(readable)


def test_a_packages_lost_file_is_left_to_the_reader_to_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "loser-1.0.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text("Metadata-Version: 2.1\nName: loser\nVersion: 1.0\n")
    (notes / "RECORD").write_text("loser/lost.txt,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    inventory = take_inventory(recipe_of(own="pip:loser"), {}, METER)
    assert inventory == {"own": {"loser/lost.txt": {"unreadable": "No such file or directory"}}}


def test_fingerprints_are_of_names_and_contents(texts: Path, tmp_path: Path) -> None:
    def print_of(folder: Path) -> str:
        return fingerprints(take_inventory(recipe_of(own=str(folder)), {}, METER))["own"]

    first = print_of(texts)
    os.utime(texts / "003.txt", ns=(1, 1))
    assert print_of(texts) == first
    moved = texts.rename(tmp_path / "moved")
    assert print_of(moved) == first
    (moved / "003.txt").rename(moved / "new name.txt")
    renamed = print_of(moved)
    (moved / "004.txt").write_text("The fox")
    assert len({first, renamed, print_of(moved)}) == 3


def test_a_planted_question_reaches_neither_shards_nor_vocabulary(tmp_path, texts, tiny_tokenizer):
    question = "How many foxes does it take to run over a lazy dog in the dark of the night?"
    (texts / "book.txt").write_text(f"A book.\n{question.upper()}\nNobody knows.\n")
    (tmp_path / "talk.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Seven."}]})
        + "\n"
        + "".join(
            json.dumps(
                {"messages": [{"role": "user", "content": f"Hi {number}"}, {"role": "assistant", "content": "Ho"}]}
            )
            + "\n"
            for number in range(20)
        )
    )
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": question, "answer": "seven"}) + "\n")
    questions = Questions(question_files([str(tmp_path / "test.jsonl")]), METER)
    recipe = recipe_of(own=str(texts), talk=str(tmp_path / "talk.jsonl"))
    facts = write_shards(recipe, tiny_tokenizer, SourceReader(recipe, questions), tmp_path, METER)
    told = f"{tmp_path.name}/test.jsonl"
    assert facts["own"].as_dict()["contaminated"] == {"documents": {told: 1}, "first_places": {told: ["book.txt"]}}
    assert facts["talk"].as_dict()["contaminated"]["first_places"] == {told: ["talk.jsonl:1"]}
    for shard in tmp_path.glob("*.ds"):
        for tokens, _ in Shard(shard, tiny_tokenizer.vocab_size).documents():
            assert "lazy dog in the dark" not in tiny_tokenizer.decode(tokens.tolist()).lower()
    assert not any(
        "lazy dog in the dark" in text.lower()
        for text in training_texts(recipe, SourceReader(recipe, questions), METER)
    )
    assert any("lazy dog in the dark" in text.lower() for text in training_texts(recipe, SourceReader(recipe), METER))


def test_personal_data_reach_neither_shards_nor_vocabulary(tmp_path, texts, tiny_tokenizer):
    (texts / "book.txt").write_text("Write to jane.doe@mail.example.co.uk, or to 8.8.8.8.\n")
    (tmp_path / "talk.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"I am no. {number}, jane.doe@mail.example.co.uk"},
                        {"role": "assistant", "content": "Ho"},
                    ]
                }
            )
            + "\n"
            for number in range(20)
        )
    )
    recipe = recipe_of(own=str(texts), talk=str(tmp_path / "talk.jsonl"))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"mask_personal": ["email"]})})
    facts = write_shards(recipe, tiny_tokenizer, SourceReader(recipe), tmp_path, METER)
    assert facts["own"].reading["masked"] == {"email": 1} and facts["talk"].reading["masked"] == {"email": 20}
    said = [
        tiny_tokenizer.decode(tokens.tolist())
        for shard in tmp_path.glob("*.ds")
        for tokens, _ in Shard(shard, tiny_tokenizer.vocab_size).documents()
    ]
    assert not any("jane.doe" in text for text in said) and any("8.8.8.8" in text for text in said)
    assert sum("email@example.com" in text for text in said) == 21
    assert not any("jane.doe" in text for text in training_texts(recipe, SourceReader(recipe), METER))
