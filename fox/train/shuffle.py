"""Randomness that is a function of names and numbers alone: the same on every machine, with every library's version.

It needs no table and no state, so any place of any order can be asked for at any time. Not for secrets: only for order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def key_of(seed: int, *names: str) -> int:
    """A number to seed randomness with, of its own for each seed and names."""
    key = _mixed(seed)
    for name in names:
        for byte in name.encode():
            key = _mixed(key ^ byte)
        key = _mixed(key ^ 0x100)
    return key


def shuffled(index: int, size: int, key: int) -> int:
    """Where `index` goes in a shuffle of range(size): a bijection, by a Feistel network with cycle walking.

    (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.)
    """
    half_bits = _half_bits(size)
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for turn in range(4):
            left, right = right, left ^ (_mixed(right ^ _mixed(key + turn)) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def shuffled_all(indices: npt.NDArray[np.int64], size: int, key: int) -> npt.NDArray[np.int64]:
    """`shuffled` of each of many."""
    half_bits = np.uint64(_half_bits(size))
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    turns = [np.uint64(_mixed(key + turn)) for turn in range(4)]
    found = np.array(indices, dtype=np.uint64)
    walking = np.arange(len(found))
    while len(walking):
        left, right = found[walking] >> half_bits, found[walking] & mask
        for turn in turns:
            left, right = right, left ^ (_mixed_all(right ^ turn) & mask)
        found[walking] = left << half_bits | right
        walking = walking[found[walking] >= size]
    return found.astype(np.int64)


def random_numbers(key: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` numbers below 2^64 that depend on `key` alone: SplitMix64's sequence."""
    with np.errstate(over="ignore"):
        return _mixed_all(np.uint64(key) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _half_bits(size: int) -> int:
    return max(1, ((size - 1).bit_length() + 1) // 2)


def _mixed(value: int) -> int:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    value = (value + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


def _mixed_all(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)
