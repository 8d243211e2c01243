"""What a model will be asked reaches no shard, however it is written; ordinary text stays."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fox.data.decontaminate import MIN_QUESTION_WORDS, Questions, grams_of, hashes_of, question_files, words_of
from fox.errors import UserError
from fox.progress import Meter

LONG = (
    "Janet's ducks lay 16 eggs per day; she eats three for breakfast every morning and bakes muffins for her friends."
)
SHORT = "What is the smallest country in the world?"
ROWS = [
    {"id": 1, "question": LONG, "answer": "18"},
    {"question": SHORT, "choices": {"text": ["all of the above", "none of these"], "label": ["A", "B"]}},
    {"sentence": "Sarah was a much better surgeon than Maria so _ always got the easier cases.", "option1": "Sarah", "option2": "Maria"},
    {"question": "Why?", "endings": ["starts pulling up all the roofing on a roof in Maine."]},
]  # fmt: skip


@pytest.fixture
def questions(tmp_path: Path) -> Questions:
    (tmp_path / "sets").mkdir()
    for number, row in enumerate(ROWS):
        (tmp_path / "sets" / f"{number}.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode(), mtime=0))
    return Questions(question_files([str(tmp_path / "sets" / "*")]), Meter("questions", 4, "files"))


@pytest.mark.parametrize(
    ("text", "file"),
    [
        (LONG, 0),
        (f"A book. {LONG.upper()} And so on.", 0),
        (LONG.replace(" ", "\n\n").replace("'", "’"), 0),
        ("per day she eats three, for -- breakfast: every (morning) and bakes muffins for", 0),
        (f"It asked: {SHORT} Nobody knew.", 1),
        ("what is THE smallest country in the world", 1),
        ("Sarah was a much better surgeon than Maria, so Maria always got the easier cases.", 2),
        ("Sarah was a much better surgeon than Maria so _ always got the easier cases.", 2),
        ("Sarah was a much better surgeon than Maria so Sarah always got the easier cases!", 2),
        ("He starts pulling up all the roofing on a roof in Maine.", 3),
    ],
)
def test_a_text_of_a_question_is_found(questions, text, file):
    assert questions.file_with(text) == f"sets/{file}.jsonl.gz"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Why?",
        "all of the above, none of these",
        "per day she eats three for breakfast every morning and bakes muffins",  # twelve words
        "What is the smallest country in Europe? The world knows.",
        "Sarah was a much better surgeon than Maria so nobody always got the easier cases.",
        "starts pulling up all the roofing on a barn in Maine.",
    ],
)
def test_ordinary_text_stays(questions, text):
    assert questions.file_with(text) is None


def test_saved_ones_find_the_same(questions, tmp_path):
    questions.save(tmp_path / "kept")
    kept = Questions.load(tmp_path / "kept")
    for text in (LONG, f"It asked: {SHORT} Nobody knew.", ROWS[3]["endings"][0], "all of the above, none of these", ""):
        assert kept.file_with(text) == questions.file_with(text)


def test_runs_of_words_are_told_apart_by_order_and_place():
    def grams(text: str, length: int) -> list[int]:
        return grams_of(words_of(text), length).tolist()

    assert grams("a b c a b c", 3)[0] == grams("a b c a b c", 3)[3]
    assert len(set(grams("a b c b a c b c a", 3))) == 7
    assert grams("a b", 3) == []
    assert words_of("Ünder_score x-y 3.14").size == 6


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"question": ', "not JSON"),
        ("a.jsonl.gz", b"no gzip", "gzip is cut short"),
        ("a.csv", b"question", "is no file of .jsonl, .json"),
    ],
)
def test_questions_that_can_not_be_read_stop_the_run(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as error:
        Questions(question_files([str(tmp_path / name)]), Meter("questions", 1, "files"))
    assert error.value.exit_code == 2


def test_a_pattern_that_names_nothing_is_an_error(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    for pattern, problem in (
        ("*.json", "names no file"),
        ("*.jsonl", "which is no file"),
        ("~nobody_at_all/x", "be a path"),
    ):
        with pytest.raises(UserError, match=problem):
            question_files([pattern if pattern.startswith("~") else str(tmp_path / pattern)])


def test_a_change_of_the_questions_is_noticed_wherever_they_lie(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text("{}\n")
    before = hashes_of(question_files([str(tmp_path / "a" / "*")]))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a").mkdir()
    (tmp_path / "b" / "a" / "x.jsonl").write_text("{}\n")
    assert hashes_of(question_files([str(tmp_path / "b" / "**" / "*.jsonl")])) == before
    (tmp_path / "a" / "x.jsonl").write_text("{} \n")
    assert hashes_of(question_files([str(tmp_path / "a" / "*")])) != before


REAL = Path(__file__).parents[4] / "shared" / "data" / "eval"


def _real() -> Iterator[tuple[str, str]]:
    for name, key in {
        "arc_challenge/test": "question",
        "hellaswag/validation": "ctx",
        "mmlu/test": "question",
        "truthfulqa/mc_validation": "question",
        "winogrande/validation": "sentence",
        "gsm8k/test": "question",
    }.items():
        for line in gzip.decompress((REAL / f"{name}.jsonl.gz").read_bytes()).splitlines()[:300]:
            yield f"{name}.jsonl.gz", json.loads(line)[key]


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/eval")
def test_questions_of_the_six_sets_are_found_when_they_are_planted():
    files = [str(REAL / name) for name in sorted({name for name, _ in _real()})]
    questions = Questions(question_files(files), Meter("questions", 6, "files"))
    missed = [text for _, text in _real() if not questions.file_with(f"Once upon a time. {text} The end.")]
    assert all(words_of(text).size < MIN_QUESTION_WORDS for text in missed)
    assert len(missed) < 10
