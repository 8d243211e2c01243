"""The bigram model against the formula of Chen and Goodman, written out slowly."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.eval.kneser_ney import KneserNeyBigram
from fox.formats.token_shards import Shard, ShardWriter

Documents = Sequence[Sequence[int]]
VOCAB_SIZE = 9
NEVER_SEEN = 8
DOCUMENTS = [[0, 3, 4, 3, 4, 1], [0, 3, 5, 4, 1], [0, 6, 6, 6, 3, 1], [0, 7, 1], [0, 3, 4, 1]]


def shard_of(path: Path, documents: Documents) -> Shard:
    writer = ShardWriter(path, VOCAB_SIZE, with_loss_mask=False)
    for document in documents:
        writer.write(np.array(document))
    writer.close()
    return Shard(path, VOCAB_SIZE)


def slowly(documents: Documents) -> Callable[[int, int], float]:
    """p(next | last), equation by equation: discount, continuation, interpolation."""
    counts = Counter((one, two) for document in documents for one, two in pairwise(document))
    once, twice = max(1, sum(n == 1 for n in counts.values())), sum(n == 2 for n in counts.values())
    discount = once / (once + 2 * twice)
    after, before = defaultdict(set), defaultdict(set)
    for one, two in counts:
        after[one].add(two)
        before[two].add(one)

    def continuation(token: int) -> float:
        kept = {t: max(len(before[t]) - discount, 0) / max(1, len(counts)) for t in range(VOCAB_SIZE)}
        return kept[token] + (1 - sum(kept.values())) / VOCAB_SIZE

    def probability(last: int, token: int) -> float:
        total = sum(n for (one, _), n in counts.items() if one == last)
        if not total:
            return continuation(token)
        seen = max(counts[last, token] - discount, 0) / total
        return seen + discount * len(after[last]) / total * continuation(token)

    return probability


def all_of(bigram: KneserNeyBigram, last: int) -> np.ndarray:
    return bigram.probabilities(np.full(VOCAB_SIZE, last), np.arange(VOCAB_SIZE))


@pytest.mark.parametrize("last", range(VOCAB_SIZE))
def test_probabilities_are_those_of_the_formula_and_sum_to_one(tmp_path: Path, last: int) -> None:
    found = all_of(KneserNeyBigram(shard_of(tmp_path / "s.ds", DOCUMENTS), VOCAB_SIZE), last)
    probability = slowly(DOCUMENTS)
    assert found.tolist() == pytest.approx([probability(last, token) for token in range(VOCAB_SIZE)], rel=1e-12)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert (found > 0).all()


def test_a_context_that_was_never_seen_falls_back_on_what_follows_many(tmp_path: Path) -> None:
    found = all_of(KneserNeyBigram(shard_of(tmp_path / "s.ds", DOCUMENTS), VOCAB_SIZE), NEVER_SEEN)
    assert found[4] > found[7] > found[NEVER_SEEN] > 0  # 4 follows two kinds, 7 one, and 8 none


def test_a_documents_first_token_follows_nothing(tmp_path: Path) -> None:
    one = KneserNeyBigram(shard_of(tmp_path / "one.ds", DOCUMENTS), VOCAB_SIZE)
    other = KneserNeyBigram(shard_of(tmp_path / "other.ds", list(reversed(DOCUMENTS))), VOCAB_SIZE)
    for last in range(VOCAB_SIZE):
        np.testing.assert_array_equal(all_of(one, last), all_of(other, last))


@given(
    documents=st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12), min_size=1, max_size=6),
    copies=st.integers(1, 3),
)
def test_any_text_gives_probabilities_and_nothing_is_impossible(
    tmp_path_factory: pytest.TempPathFactory, documents: Documents, copies: int
) -> None:
    documents = list(documents) * copies  # from two copies on, no pair was seen once
    bigram = KneserNeyBigram(shard_of(tmp_path_factory.mktemp("shard") / "s.ds", documents), VOCAB_SIZE)
    probability = slowly(documents)
    for last in range(VOCAB_SIZE):
        found = all_of(bigram, last)
        assert found.sum() == pytest.approx(1, abs=1e-9)
        assert (found > 0).all()
        assert found.tolist() == pytest.approx([probability(last, token) for token in range(VOCAB_SIZE)], rel=1e-9)


def test_bits_are_of_each_token_after_the_first(tmp_path: Path) -> None:
    bigram = KneserNeyBigram(shard_of(tmp_path / "s.ds", DOCUMENTS), VOCAB_SIZE)
    probability = slowly(DOCUMENTS)
    expected = [0.0, -np.log2(probability(0, 3)), -np.log2(probability(3, NEVER_SEEN))]
    assert bigram.bits(np.array([0, 3, NEVER_SEEN])).tolist() == pytest.approx(expected)
    assert bigram.bits(np.array([0])).tolist() == [0.0]
