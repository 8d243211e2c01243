"""Where the best of the documents of many tasks begin: exactly, in the memory of one task's.

A document's key is its score and then its hash, as one number. Keys are in the order of the scores, and no two documents have the same but those
that say the same: these are all among the best, or none is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fox.data.document import Document

_DIGIT_BITS = 16
_SIGN = np.uint32(2**31)

Parts = Callable[[], Iterable[np.ndarray]]
"""The keys of one task after another, as often as it is called."""


def key_of(score: float, document: Document) -> int:
    """Below 2**64; the score counts first, exact in float32. The hash is of another part of the digest than what is held out."""
    return int(_ordered(np.array([score], dtype=np.float32))[0]) << 32 | int.from_bytes(document.digest[8:12], "big")


def scores_of(keys: np.ndarray) -> np.ndarray:
    """The scores (float32) in these keys (uint64)."""
    high = (keys >> np.uint64(32)).astype(np.uint32)
    return np.where(high & _SIGN, high ^ _SIGN, ~high).view(np.float32)


def least_of_best(parts: Parts, wanted: int) -> int:
    """The largest key that so many documents reach: what is below it is not among the best. 2**64 where none is wanted.

    Its digits are found one by one, the highest first, by counting those of the keys that have the digits before.
    """
    if wanted <= 0:
        return 2**64
    found = 0
    for low in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = np.zeros(2**_DIGIT_BITS, dtype=np.int64)
        for keys in parts():
            same = keys if low + _DIGIT_BITS == 64 else keys[keys >> np.uint64(low + _DIGIT_BITS) == np.uint64(found)]
            digits = (same >> np.uint64(low)) & np.uint64(2**_DIGIT_BITS - 1)
            counts += np.bincount(digits.astype(np.int64), minlength=2**_DIGIT_BITS)
        reached = np.cumsum(counts[::-1])[::-1]  # how many have this digit or a higher one
        digit = int(np.flatnonzero(reached >= wanted)[-1])
        wanted -= int(reached[digit] - counts[digit])
        found = found << _DIGIT_BITS | digit
    return found


def _ordered(scores: np.ndarray) -> np.ndarray:
    """Numbers (uint32) in the order of these scores (float32): IEEE 754 has it so, but for the sign."""
    bits = scores.view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
