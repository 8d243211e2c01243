"""The score of documents: like its plain twin, the same everywhere; and the best of many tasks, exactly so many."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from fox.data.document import Document
from fox.data.quality import examples, rank
from fox.data.quality.examples import Examples, examples_of, hash_of, read_examples, together
from fox.data.quality.score import BUCKET_BITS, FIRST_WORDS, Score, features_of
from fox.data.quality.train import learn, matrix_of
from fox.errors import Failure, UserError


def document(text: str) -> Document:
    return Document("web", "a.txt", text=text)


def documents(letters: bytes, count: int, seed: int, words: int = 60) -> list[Document]:
    draw = random.Random(seed)
    known = [bytes(draw.choices(letters, k=draw.randint(3, 8))).decode() for _ in range(400)]
    return [document(" ".join(draw.choices(known, k=words))) for _ in range(count)]


GOOD, ORDINARY = documents(b"abcdef", 200, 1), documents(b"cdefgh", 300, 2)


@pytest.fixture(scope="module")
def score() -> Score:
    return learn(examples_of(GOOD), examples_of(ORDINARY))[0]


def assert_like_its_twin(score: Score, texts: list[str]) -> None:
    """As scikit-learn's own decision function has it, over rows of counts that are made for all texts at once."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression()
    model.classes_, model.coef_ = np.array([0, 1]), score.weights[None].astype(np.float64)
    model.intercept_, model.n_features_in_ = np.array([score.bias]), 2**BUCKET_BITS
    features = [features_of(text) for text in texts]
    lengths = np.array([part.size for part in features], dtype=np.uint32)
    rows, _ = matrix_of(Examples(np.arange(len(texts), dtype=np.uint64), lengths, np.concatenate(features)))
    np.testing.assert_allclose([score.of(text) for text in texts], model.decision_function(rows), rtol=0, atol=1e-5)


TEXTS = [
    *(d.content for d in GOOD[:20] + ORDINARY[:20]),
    "",
    "...",
    "one",
    "the the the",
    "Ünï çødé 漢字",
    "a b " * 3000,
]


def test_scores_are_those_of_the_plain_twin(score: Score) -> None:
    assert_like_its_twin(score, TEXTS)
    assert len({score.of(text) for text in TEXTS}) > 40


def test_the_parity_check_notices_a_weight_that_is_lost(score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(self: Score, text: str) -> float:
        features = features_of(text)[1:]
        return float(self.weights[features].sum() * 100 / max(1, features.size) + self.bias)

    monkeypatch.setattr(Score, "of", damaged)
    with pytest.raises(AssertionError):
        assert_like_its_twin(score, TEXTS)


def test_what_is_like_the_examples_is_scored_higher_and_the_measures_say_so(score: Score) -> None:
    unseen = [[score.of(d.content) for d in documents(letters, 60, seed)] for letters, seed in ((b"abcdef", 1), (b"cdefgh", 2))]  # fmt: skip
    assert min(unseen[0]) > max(unseen[1])
    _, measures = learn(examples_of(GOOD), examples_of(ORDINARY))
    assert measures.auc > 0.99 and measures.accuracy > 0.9 and measures.examples == 50
    half = documents(b"abcdef", 400, 1)
    _, chance = learn(examples_of(half[:200]), examples_of(half[200:]))
    assert 0.2 < chance.auc < 0.8


def test_the_measures_are_of_examples_that_nothing_was_learnt_from() -> None:
    draw = random.Random(3)
    noise = [document(" ".join(str(draw.randrange(60)) for _ in range(40))) for _ in range(400)]
    _, measures = learn(examples_of(noise[:200]), examples_of(noise[200:]))
    assert measures.auc < 0.7  # of those that it has seen it knows nearly all


def test_learning_ends_in_the_same_bits_whatever_the_order(score: Score, tmp_path: Path) -> None:
    again, _ = learn(examples_of(reversed(GOOD)), examples_of(reversed(ORDINARY)))
    score.save(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = Score.load(tmp_path / "a.safetensors")
    assert [loaded.of(text) for text in TEXTS] == [score.of(text) for text in TEXTS]
    assert loaded.about == {"good": 200, "ordinary": 300}


def any_score() -> Score:
    """Of weights that are as unlike in size as can be."""
    draw = np.random.default_rng(5)
    size = 2**BUCKET_BITS
    return Score(draw.choice([-1.0, 1.0], size) * 10.0 ** draw.uniform(-12, 4, size), 0.25, {})


def test_sums_do_not_depend_on_their_order() -> None:
    values = any_score().weights[features_of(" ".join(d.content for d in GOOD[:10]))]
    sums = {np.random.default_rng(seed).permutation(values).sum(dtype=np.float64) for seed in range(50)}
    assert len(sums) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "bits"])
def test_a_damaged_score_is_told(score: Score, tmp_path: Path, damage: str) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "quality.safetensors"
    score.save(path)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other":
        save_file({"weights": score.weights}, path)
    else:
        about = {"bias": 0.0, "bucket_bits": 4, "first_words": FIRST_WORDS}
        save_file({"weights": score.weights}, path, metadata={"quality": json.dumps(about)})
    with pytest.raises(Failure, match="Make the corpus again"):
        Score.load(path)


def test_a_text_is_scored_by_its_beginning_and_long_ones_cost_no_more() -> None:
    score = any_score()
    beginning = " ".join(f"w{n % 50}" for n in range(FIRST_WORDS))
    assert score.of(beginning + " other words" * 10) == score.of(beginning)
    start = time.process_time()
    for text in ("a " * 10**7, "a" * 10**7, "_" * 10**7, "\u0130" * 10**7):
        score.of(text)
    assert time.process_time() - start < 2


def test_examples_are_few_each_once_and_the_same_in_any_order(tmp_path: Path) -> None:
    many = GOOD + ORDINARY + GOOD
    few = examples_of(many, most=50)
    lowest = sorted({hash_of(d) for d in many})[:50]
    assert few.hashes.tolist() == lowest
    assert all((a == b).all() for a, b in zip(few, examples_of(reversed(many), most=50), strict=True))
    few.save(tmp_path / "few")
    assert all((a == b).all() for a, b in zip(few, Examples.load(tmp_path / "few"), strict=True))
    assert examples_of([], 5).hashes.size == 0


def test_parts_of_many_tasks_are_those_of_one_without_the_good_ones() -> None:
    parts = [examples_of(ORDINARY[at : at + 70]) for at in range(0, 300, 70)] + [examples_of([])]
    whole = together(parts, without=examples_of(ORDINARY[:100] + GOOD))
    assert all((a == b).all() for a, b in zip(whole, examples_of(ORDINARY[100:]), strict=True))


def write_rows(path: Path, texts: list[str]) -> None:
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))


def test_examples_are_read_from_any_file_and_what_is_bad_is_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [d.content for d in GOOD[:40]] + [""])
    (tmp_path / "b.txt").write_text("A story of its own.")
    found, tally = read_examples("data.quality.good", [str(tmp_path / "*")])
    assert found.hashes.size == 41 and tally.bad.total() == 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [("few.jsonl", "leaves 19 different examples"), ("none/*", "names no file"), ("a.csv", "which is no file of")],
)
def test_examples_that_are_no_use_stop_the_run(tmp_path: Path, name: str, problem: str) -> None:
    write_rows(tmp_path / "few.jsonl", [d.content for d in GOOD[: examples.FEWEST - 1]] * 3)
    (tmp_path / "a.csv").write_text("text")
    with pytest.raises(UserError, match=problem) as error:
        read_examples("data.quality.good", [str(tmp_path / name)])
    assert error.value.problems[0].key == "data.quality.good"


FLOATS = some.floats(width=32, allow_nan=False, allow_infinity=False)


@given(some.lists(FLOATS, min_size=1, max_size=40))
def test_keys_are_in_the_order_of_the_scores_and_hold_them(values: list[float]) -> None:
    keys = np.array([rank.key_of(value, document("x")) for value in values], dtype=np.uint64)
    scores = np.array(values, dtype=np.float32)
    assert (rank.scores_of(keys).view(np.uint32) == scores.view(np.uint32)).all()
    assert (scores[np.argsort(keys)] == np.sort(scores)).all()


@given(some.lists(some.lists(some.integers(0, 2**64 - 1), max_size=30), min_size=1, max_size=5), some.integers(0, 200))
def test_the_least_of_the_best_is_that_of_all_sorted(parts: list[list[int]], wanted: int) -> None:
    keys = sorted((key for part in parts for key in part), reverse=True)
    wanted = min(wanted, len(keys))
    found = rank.least_of_best(lambda: (np.array(part, dtype=np.uint64) for part in parts), wanted)
    assert found == (keys[wanted - 1] if wanted else 2**64)


def test_of_documents_with_one_score_the_hash_decides_and_the_share_is_met() -> None:
    keys = np.array([rank.key_of(0.5, document(f"{n}")) for n in range(5000)], dtype=np.uint64)
    least = rank.least_of_best(lambda: (keys[:700], keys[700:]), 500)
    assert (keys >= np.uint64(least)).sum() == 500
