"""Best-fit-decreasing: pieces of documents into bins of one capacity, with little room left (Ding et al., arXiv 2404.10830).

The longest piece comes first, and each goes into the fullest bin that still has room for it. Lengths are small whole numbers,
so bins lie in stacks by the room that they have left, and the non-empty stacks are the ones of a bit set: finding the best fit
is one shift. All pieces of one length are placed at once, since the fullest bin that took one of them is the fullest that can
take the next.

Where pieces are so long that they leave much room whatever is done, a few of them can be cut to fill it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def best_fit(lengths: Numbers, capacity: int) -> tuple[Numbers, Numbers]:
    """Place pieces of `lengths`, each from 1 to `capacity`: the bin of each piece, and the room left in each bin.

    Bins are numbered from the fullest to the emptiest. The same lengths give the same bins.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes, firsts = np.unique(-lengths[order], return_index=True)
    ends = np.append(firsts, len(lengths))[1:]
    bin_of = np.empty(len(lengths), dtype=np.int64)
    stacks: dict[int, list[int]] = {}
    stocked = 0  # bit n is set where some bin has room for n more tokens
    num_bins = 0
    for size, at, end in zip((-sizes).tolist(), firsts.tolist(), ends.tolist(), strict=True):
        while at < end:
            fitting = stocked >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                stack = stacks[room]
                count = min(len(stack), -(-(end - at) // (room // size)))
                bins = stack[-count:]
                del stack[-count:]
                if not stack:
                    stocked ^= 1 << room
            else:
                room = capacity
                count = -(-(end - at) // (room // size))
                bins = list(range(num_bins, num_bins + count))
                num_bins += count
            each = room // size
            placed = min(end - at, each * count)
            bin_of[order[at : at + placed]] = np.repeat(bins, each)[:placed]
            at += placed
            partly = placed - each * (count - 1)  # the last of these bins may get fewer than it has room for
            for left, some in ((room - each * size, bins[:-1]), (room - partly * size, bins[-1:])):
                if some and left:
                    stacks.setdefault(left, []).extend(some)
                    stocked |= 1 << left
    return _fullest_first(bin_of, lengths, capacity)


def cut_to_fill(
    lengths: Numbers, bin_of: Numbers, room: Numbers, capacity: int, most_waste: float
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Cut some pieces, where more than `most_waste` of the room in the bins of `best_fit` is left, so that no more is, or less than a bin.

    The emptiest bins are poured into the others' room, the most room first: the fewest pieces are cut. Of each piece that there is
    then: which one it is of, where in that it begins, its length, and its bin.
    """
    total = int(lengths.sum())
    kept = max(-(-total // capacity), int(total / (capacity * (1 - most_waste))))
    return _poured(lengths, bin_of, room, capacity, kept)


def fill_whole(
    lengths: Numbers, bin_of: Numbers, room: Numbers, capacity: int
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Cut some pieces, so that no room is left in the bins of `best_fit` but in the last, where they do not fill a number of bins.

    As `cut_to_fill` gives them.
    """
    return _poured(lengths, bin_of, room, capacity, int(lengths.sum()) // capacity)


def _poured(
    lengths: Numbers, bin_of: Numbers, room: Numbers, capacity: int, kept: int
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """The first `kept` bins with what the others have in their room; what they have no room for is in one bin more."""
    poured = np.flatnonzero(bin_of >= kept)
    if not len(poured):
        return np.arange(len(lengths)), np.zeros_like(lengths), lengths, bin_of
    ends = np.cumsum(lengths[poured])
    room_ends = np.cumsum(room[:kept][::-1])
    ends_of_parts = np.union1d(ends, room_ends[(room_ends > 0) & (room_ends < ends[-1])])
    begins = np.concatenate([[0], ends_of_parts[:-1]])
    piece = np.searchsorted(ends, begins, side="right")
    into = kept - 1 - np.searchsorted(room_ends, begins, side="right")
    into[into < 0] = kept
    stay = np.flatnonzero(bin_of < kept)
    of = np.concatenate([stay, poured[piece]])
    offsets = np.concatenate([np.zeros_like(stay), begins - (ends - lengths[poured])[piece]])
    new_lengths = np.concatenate([lengths[stay], ends_of_parts - begins])
    new_bins, _ = _fullest_first(np.concatenate([bin_of[stay], into]), new_lengths, capacity)
    return of, offsets, new_lengths, new_bins


def _fullest_first(bin_of: Numbers, lengths: Numbers, capacity: int) -> tuple[Numbers, Numbers]:
    """Bins numbered anew, and the room left in each."""
    room_left = capacity - np.bincount(bin_of, weights=lengths).astype(np.int64)
    fullest_first = np.argsort(room_left, kind="stable")
    new_number = np.empty_like(fullest_first)
    new_number[fullest_first] = np.arange(len(fullest_first))
    return new_number[bin_of], room_left[fullest_first]
