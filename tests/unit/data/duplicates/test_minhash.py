"""Documents that are alike share a band as often as the arithmetic says."""

import numpy as np
import pytest

from fox.data.duplicates import minhash
from fox.data.duplicates.minhash import BANDS, ROWS, band_keys


def plain_least(shingles: np.ndarray, order: int) -> int:
    factor, summand = int(minhash._FACTORS[order]), int(minhash._SUMMANDS[order])
    return min((int(each) * factor + summand) % 2**32 for each in shingles)


def test_keys_are_those_of_a_plain_loop():
    """Two documents have one band's key in common where they have all its rows, and only there."""
    random = np.random.default_rng(1)
    pool = random.integers(0, 2**32, 300, dtype=np.uint32)
    documents = [random.choice(pool, random.integers(1, 200)) for _ in range(12)] + [pool, pool[::-1], pool[1:]]
    keys = band_keys(documents)
    least = [[plain_least(shingles, order) for order in range(BANDS * ROWS)] for shingles in documents]
    for band in range(BANDS):
        rows = [tuple(each[band * ROWS : (band + 1) * ROWS]) for each in least]
        for first in range(len(documents)):
            for second in range(len(documents)):
                assert (keys[first, band] == keys[second, band]) == (rows[first] == rows[second])
    assert len(np.unique(band_keys([np.arange(9, dtype=np.uint32)]))) == BANDS


def test_a_documents_keys_are_the_same_in_any_company():
    documents = [np.arange(size, dtype=np.uint32) * np.uint32(2654435761) for size in (1, 1, 7, 500)]
    together = band_keys(documents)
    assert all(
        np.array_equal(band_keys([document])[0], keys) for document, keys in zip(documents, together, strict=True)
    )


@pytest.mark.parametrize(("share", "size"), [(0.5, 400), (0.7, 400), (0.8, 400), (0.8, 27), (0.9, 60)])
def test_candidates_are_as_many_as_the_arithmetic_says(share, size):
    """600 pairs of documents that have just this share of their shingles in common."""
    random = np.random.default_rng(size)
    common, pairs = round(2 * size * share / (1 + share)), 600
    exact = common / (2 * size - common)
    pools = [random.choice(2**32, 2 * size - common, replace=False).astype(np.uint32) for _ in range(pairs)]
    keys = band_keys([pool[:size] for pool in pools]), band_keys([pool[-size:] for pool in pools])
    met = int((keys[0] == keys[1]).any(axis=1).sum())
    expected = 1 - (1 - exact**ROWS) ** BANDS
    deviation = (expected * (1 - expected) / pairs) ** 0.5
    assert abs(met / pairs - expected) < 4 * deviation + 1 / pairs


def test_nineteen_of_twenty_pairs_that_share_four_fifths_are_candidates():
    assert 1 - (1 - 0.8**ROWS) ** BANDS > 0.99
