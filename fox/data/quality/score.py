"""How much a text is like what is wanted: a weight for each of its words and pairs of words, and the mean of these.

The class of model is fastText's (arXiv 1607.01759) without its hidden layer: DCLM chose the best tenth of its pages with such a one, and found it ahead of
embeddings, of perplexity and of scores by large models (arXiv 2406.11794, section 4.4). Words are compared without case and punctuation, and their pairs are
kept by hash alone, so that no vocabulary has to be. Where writing has no space between words, whole clauses are words, and the score knows little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fox.artifacts import write_atomically
from fox.data.decontaminate import grams_of, words_of
from fox.errors import Failure

BUCKET_BITS = 20
"""Of a million weights: a pair of words shares its own with few others that are common."""

FIRST_WORDS = 1_000
"""Of a document are looked at. More tell little that these don't, and books would need memory and time."""

FIRST_CHARACTERS = 20_000
"""In which the words are looked for: most texts have their first thousand in a third of that."""

PERCENT = 100.0
"""A feature's value is its share of the text in percent: numbers near one, with which the learning ends sooner."""

_STEP = 2.0**-20
"""Weights are whole multiples of it, and less than _LARGEST: sums of thousands are exact then, in whatever order a processor adds."""
_LARGEST = 2.0**16


def features_of(text: str) -> np.ndarray:
    """The buckets (uint32) of the words and of the pairs of words that a text begins with."""
    words = words_of(text[:FIRST_CHARACTERS])[:FIRST_WORDS]
    both = np.concatenate([words, grams_of(words, 2)])
    return (both >> np.uint64(64 - BUCKET_BITS)).astype(np.uint32)


class Score:
    """Scores one text after another: log odds that it is an example of what is wanted. The same on every machine, to the last bit."""

    def __init__(self, weights: np.ndarray, bias: float, about: Mapping[str, Any]) -> None:
        """`weights` for each bucket, for a feature's percent. `about` tells how it was made."""
        self.weights = np.clip(np.rint(weights.astype(np.float64) / _STEP) * _STEP, -_LARGEST, _LARGEST).astype(
            np.float32
        )
        self.bias = bias
        self.about = dict(about)

    def of(self, text: str) -> float:
        """The score of a text, exact in float32: above 0 is more likely wanted than not. One without words has that of no text at all."""
        features = features_of(text)
        if not features.size:
            return float(np.float32(self.bias))
        total = self.weights[features].sum(dtype=np.float64)
        return float(np.float32(total * PERCENT / features.size + self.bias))

    def save(self, path: Path) -> None:
        """Keep it as a safetensors file: `weights`, and all else in its header. The same score gives the same bytes."""
        from safetensors.numpy import save

        about = json.dumps({**self.about, "bias": self.bias, "bucket_bits": BUCKET_BITS, "first_words": FIRST_WORDS})
        write_atomically(path, save({"weights": self.weights}, metadata={"quality": about}))

    @classmethod
    def load(cls, path: Path) -> Score:
        """One that was saved. Raises Failure where it is damaged, or of another kind."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                about = json.loads((file.metadata() or {})["quality"])
                weights = file.get_tensor("weights")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise Failure(
                f"{path}: is no score as Fox writes it ({error}). Make the corpus again: --redo corpus."
            ) from None
        if weights.shape != (2 ** about.pop("bucket_bits", 0),) or about.pop("first_words", 0) != FIRST_WORDS:
            raise Failure(f"{path}: is a score of another version. Make the corpus again: --redo corpus.")
        return cls(weights, about.pop("bias"), about)
