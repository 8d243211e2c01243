"""A Kneser-Ney bigram model (Ney, Essen and Kneser, 1994; interpolated, as in Chen and Goodman, 1999): the bar to clear.

A neural model that does not beat it has learnt less than which word follows which.
"""

from __future__ import annotations

import numpy as np

from fox.formats.token_shards import Shard, Tokens


class KneserNeyBigram:
    """p(next | last) from counts, with one discount: n1 / (n1 + 2 n2) of the bigrams seen once and twice."""

    def __init__(self, shard: Shard, vocab_size: int) -> None:
        tokens = np.asarray(shard.tokens).astype(np.int64)
        inside = np.ones(len(tokens), dtype=np.bool_)
        inside[shard.ends[shard.ends < len(tokens)]] = False  # a document's first token follows nothing
        pairs = tokens[:-1][inside[1:]] * vocab_size + tokens[1:][inside[1:]]
        self._vocab_size = vocab_size
        self._pairs, self._counts = np.unique(pairs, return_counts=True)
        last, following = np.divmod(self._pairs, vocab_size)
        seen_once, seen_twice = (int(np.count_nonzero(self._counts == times)) for times in (1, 2))
        # Once at least: without a discount, what was never seen would be impossible.
        self._discount = max(1, seen_once) / (max(1, seen_once) + 2 * seen_twice)
        self._last_counts = np.bincount(last, weights=self._counts, minlength=vocab_size)
        self._kinds_after = np.bincount(last, minlength=vocab_size)
        # The continuation probability, mixed with a uniform one so that tokens that never followed anything have some.
        kinds_before = np.bincount(following, minlength=vocab_size)
        discounted = np.maximum(kinds_before - self._discount, 0) / max(1, len(self._pairs))
        self._continuation = discounted + (1 - discounted.sum()) / vocab_size

    def probabilities(self, last: Tokens, following: Tokens) -> np.ndarray:
        """p(following | last), each (T,)."""
        pair = last.astype(np.int64) * self._vocab_size + following
        at = np.minimum(np.searchsorted(self._pairs, pair), max(0, len(self._pairs) - 1))
        count = np.where(self._pairs[at] == pair, self._counts[at], 0) if len(self._pairs) else np.zeros(len(pair))
        total = self._last_counts[last]
        backed_off = self._continuation[following]
        known = total > 0
        total = np.where(known, total, 1)
        seen = np.maximum(count - self._discount, 0) / total
        left = self._discount * self._kinds_after[last] / total
        return np.where(known, seen + left * backed_off, backed_off)

    def bits(self, document: Tokens) -> np.ndarray:
        """The bits of each token of a document (0 for its first)."""
        return np.concatenate([[0.0], -np.log2(self.probabilities(document[:-1], document[1:]))])
