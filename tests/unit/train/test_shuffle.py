"""Shuffles without tables: each index to a place of its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fox.train.shuffle import shuffled, shuffled_all


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_shuffle_moves_each_index_to_a_place_of_its_own(size: int, key: int) -> None:
    assert sorted(shuffled_all(np.arange(size), size, key).tolist()) == list(range(size))


@pytest.mark.parametrize("size", [2**20 - 1, 2**20, 2**20 + 1, 10**12 + 7])
def test_a_shuffle_of_any_size_stays_inside_it_and_scatters(size: int) -> None:
    places = [shuffled(index, size, key=5) for index in range(2000)]
    assert len(set(places)) == 2000 and max(places) < size
    assert 0.4 < sum(places) / len(places) / size < 0.6


def test_shuffles_with_other_keys_are_others() -> None:
    orders = {tuple(shuffled(index, 50, key) for index in range(50)) for key in range(200)}
    assert len(orders) == 200


@given(size=st.integers(1, 10**12), key=st.integers(0, 2**64 - 1), data=st.data())
def test_many_at_once_go_where_each_goes_alone(size: int, key: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20))
    assert shuffled_all(np.array(indices), size, key).tolist() == [shuffled(index, size, key) for index in indices]
