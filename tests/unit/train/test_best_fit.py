"""Best-fit-decreasing, held against the plain one that looks at every bin for every piece."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fox.train.best_fit import best_fit, cut_to_fill, fill_whole

LENGTHS = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), min_size=1, max_size=80))
)


def rooms_by_looking_at_every_bin(lengths: list[int], capacity: int) -> list[int]:
    """The room that is left in each bin, by the definition."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


@given(LENGTHS)
def test_bins_are_those_of_the_definition(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    bin_of, room = best_fit(np.array(lengths), capacity)
    assert room.tolist() == rooms_by_looking_at_every_bin(lengths, capacity)
    filled = [sum(length for length, at in zip(lengths, bin_of, strict=True) if at == one) for one in range(len(room))]
    assert [capacity - full for full in filled] == room.tolist()
    assert (best_fit(np.array(lengths), capacity)[0] == bin_of).all()


def test_a_case_worked_out_by_hand() -> None:
    # 7 -> A(3 left); 6 -> B(4); 4 -> B(0); 3 -> A(0), not a new one; 3 -> C(7); 2 -> C(5); 2 -> C(3)
    bin_of, room = best_fit(np.array([3, 6, 2, 7, 3, 4, 2]), 10)
    assert room.tolist() == [0, 0, 3]
    together = {frozenset(np.flatnonzero(bin_of == one).tolist()) for one in range(3)}
    assert together == {frozenset({0, 3}), frozenset({1, 5}), frozenset({2, 4, 6})}


def test_the_fullest_bin_is_taken_and_not_the_first() -> None:
    # 8 -> A(4); 5, 5 -> B(2); 2 -> B(0), where first fit would leave 2 in both
    assert rooms_by_looking_at_every_bin([8, 5, 5, 2], 12) == [0, 4]
    assert best_fit(np.array([8, 5, 5, 2]), 12)[1].tolist() == [0, 4]


def test_nothing_to_place_needs_no_bin() -> None:
    bin_of, room = best_fit(np.empty(0, dtype=np.int64), 10)
    assert len(bin_of) == len(room) == 0


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=200), capacity=st.integers(40, 64), most=st.sampled_from([0.0, 0.01, 0.1, 0.5]))  # fmt: skip
def test_cutting_keeps_every_token_once_and_leaves_no_more_room_than_asked(
    lengths: list[int], capacity: int, most: float
) -> None:
    given_ = np.array(lengths)
    bin_of, room = best_fit(given_, capacity)
    of, offsets, parts, bins = cut_to_fill(given_, bin_of, room, capacity, most)
    pieces = [(int(piece), int(offset), int(offset + part)) for piece, offset, part in zip(of, offsets, parts, strict=True)]  # fmt: skip
    for piece, length in enumerate(lengths):
        mine = sorted((begin, end) for which, begin, end in pieces if which == piece)
        assert [begin for begin, _ in mine] == [0, *[end for _, end in mine[:-1]]] and mine[-1][1] == length
    filled = np.bincount(bins, weights=parts)
    assert filled.max() <= capacity and filled.min() > 0 and all(filled[:-1] >= filled[1:])
    waste = len(filled) * capacity - sum(lengths)
    assert waste <= most * len(filled) * capacity + 1e-9 or waste < capacity
    if waste and len(filled) == len(room):
        assert (bins == bin_of).all() and len(pieces) == len(lengths)


@given(lengths=st.lists(st.integers(1, 40), max_size=100), capacity=st.integers(40, 64))
def test_filled_whole_no_bin_but_the_last_has_room(lengths: list[int], capacity: int) -> None:
    given_ = np.array(lengths, dtype=np.int64)
    of, offsets, parts, bins = fill_whole(given_, *best_fit(given_, capacity), capacity)
    covered = sorted(
        (int(piece), int(offset), int(part)) for piece, offset, part in zip(of, offsets, parts, strict=True)
    )
    assert all(part > 0 for _, _, part in covered)
    for piece, length in enumerate(lengths):
        mine = [(offset, part) for which, offset, part in covered if which == piece]
        assert [offset for offset, _ in mine] == [0, *np.cumsum([part for _, part in mine]).tolist()[:-1]]
        assert sum(part for _, part in mine) == length
    whole, rest = divmod(sum(lengths), capacity)
    assert np.bincount(bins, weights=parts).tolist() == [capacity] * whole + [rest] * (rest > 0)


def test_what_has_little_room_left_is_not_cut() -> None:
    lengths = np.array([10, 6, 5, 5, 6])
    of, offsets, parts, _ = cut_to_fill(lengths, *best_fit(lengths, 16), 16, 0.01)
    assert parts.tolist() == lengths.tolist() and not offsets.any() and of.tolist() == [0, 1, 2, 3, 4]
