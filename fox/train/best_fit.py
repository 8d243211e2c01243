"""Best-fit-decreasing: pieces of documents into bins of one capacity, with little room left (Ding et al., arXiv 2404.10830).

The longest piece comes first, and each goes into the fullest bin that still has room for it. Lengths are small whole numbers,
so bins lie in stacks by the room that they have left, and the non-empty stacks are the ones of a bit set: finding the best fit
is one shift. All pieces of one length are placed at once, since the fullest bin that took one of them is the fullest that can
take the next.
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
    room_left = capacity - np.bincount(bin_of, weights=lengths, minlength=num_bins).astype(np.int64)
    fullest_first = np.argsort(room_left, kind="stable")
    new_number = np.empty_like(fullest_first)
    new_number[fullest_first] = np.arange(num_bins)
    return new_number[bin_of], room_left[fullest_first]
