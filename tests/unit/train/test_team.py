"""How processes meet in a store in which earlier ones have left all that they said."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from fox.train.team import ManyRanks, _cleared


def meet(store: dist.Store, ranks: int) -> list[dist.Store]:
    """What each rank gets, in the order of the ranks; the last ones come first."""
    got: dict[int, dist.Store] = {}
    threads = [
        threading.Thread(target=lambda rank=rank: got.update({rank: _cleared(store, rank, ranks)}))  # type: ignore[misc]
        for rank in reversed(range(ranks))
    ]
    for thread in threads:
        thread.start()
        thread.join(0.1)
    for thread in threads:
        thread.join(20)
    return [got[rank] for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 3])
def test_nothing_that_was_said_before_a_restart_is_heard_after_it(ranks: int) -> None:
    kept = dist.HashStore()
    before = meet(kept, ranks)
    before[0].set("fox/said/1", "of the first start")
    before[1].set("fox/told", "1 1")
    assert all(store.get("fox/said/1") == b"of the first start" for store in before)
    after = meet(kept, ranks)
    assert not any(store.check([key]) for store in after for key in ("fox/said/1", "fox/told"))
    after[0].set("fox/said/1", "of the second")
    assert all(store.get("fox/said/1") == b"of the second" for store in after)


def test_the_leader_hears_all_ranks_in_their_order_and_no_rank_waits_for_it() -> None:
    store = dist.HashStore()
    teams = [ManyRanks.__new__(ManyRanks) for _ in range(3)]
    for rank, team in enumerate(teams):
        team.rank, team.size, team._store, team._said = rank, 3, store, 0
    for turn in range(2):
        assert teams[2].to_leader({"rank": 2, "turn": turn}) == teams[1].to_leader({"rank": 1, "turn": turn}) == []
    for turn in range(2):
        heard = teams[0].to_leader({"rank": 0, "turn": turn, "pair": (1, 2)})
        assert heard[0] == {"rank": 0, "turn": turn, "pair": [1, 2]}, "as the others' would be, through JSON"
        assert heard[1:] == [{"rank": 1, "turn": turn}, {"rank": 2, "turn": turn}]
