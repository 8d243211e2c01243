"""The processes that train one model together: who leads, and what they tell each other beside their tensors.

torchrun starts them and says in the environment who is who; a process that it did not start is a team of one. Tensors go
through torch's process group. All else (what to do next, what the leader has found) is JSON in the store through which the
group met: waiting for it costs nothing, may last for hours, and ends when somebody else has failed.
"""

from __future__ import annotations

import datetime
import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fox.errors import Failure
from fox.train.machine import device

_MEET_S = 300
_POLL_S = 0.05
_TOLD = "fox/told"
_HEARD = "fox/heard"


class Ended(Exception):  # noqa: N818 (the error is somebody else's, and told by them)
    """Another process of the team has failed and told why; `exit_code` is how all end."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Team:
    """A team of one: nothing to agree on. `ManyRanks` is a larger one."""

    rank = 0
    size = 1
    data_rank = 0
    data_ranks = 1
    mesh: DeviceMesh | None = None
    """Axes `data` (the model is cut among these, and so are a step's rows) and `tensor` (each block's heads are cut among these)."""

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes, prints and measures."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the ranks that have rows of their own, in place. The same bits on every rank."""
        return value

    def sum_of_all(self, value: float) -> float:
        """The sum over all ranks, whether they share rows or not."""
        return value

    def any_of(self, value: int) -> int:
        """The largest `value` of any rank."""
        return value

    def as_leader(self, values: list[float]) -> list[float]:
        """The leader's numbers, on every rank: what is decided by them is decided alike."""
        return values

    def from_leader(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the leader (JSON), on every rank. Raises Ended on the others where it fails."""
        return make()

    def to_leader(self, value: Any) -> list[Any]:
        """What each rank has given (JSON), in their order, on the leader; nothing on the others, which do not wait for it. Raises Ended
        on the leader where one of them fails first."""
        return [value]

    def wait(self) -> None:
        """Until every rank is here."""


class ManyRanks(Team):
    """The processes that torchrun has started; every method must be called by all of them, in the same order."""

    def __init__(self) -> None:
        where = device()
        if where.type == "cuda":
            torch.cuda.set_device(where)
        met = dist.rendezvous("env://", timeout=datetime.timedelta(seconds=_MEET_S))
        store, self.rank, self.size = next(met)
        self._store = _cleared(store, self.rank, self.size)
        backend = "nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=self._store, rank=self.rank, world_size=self.size)
        self._said = 0

    def share_model(self, tensor_ranks: int) -> None:
        """Divide the ranks: those of `tensor_ranks` neighbours work on the same rows."""
        self.data_ranks = self.size // tensor_ranks
        self.mesh = init_device_mesh(device().type, (self.data_ranks, tensor_ranks), mesh_dim_names=("data", "tensor"))
        self.data_rank = self.mesh.get_local_rank("data")

    def sum(self, value: Tensor) -> Tensor:
        assert self.mesh is not None
        dist.all_reduce(value, group=self.mesh.get_group("data"))
        return value

    def sum_of_all(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=device())
        dist.all_reduce(total)
        return float(total)

    def any_of(self, value: int) -> int:
        largest = torch.tensor(value, device=device())
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def as_leader(self, values: list[float]) -> list[float]:
        told = torch.tensor(values, dtype=torch.float64, device=device())
        dist.broadcast(told, src=0)
        return told.tolist()

    def from_leader(self, make: Callable[[], Any]) -> Any:
        self._said += 1
        key = f"fox/said/{self._said}"
        if self.leads:
            made = make()
            self._store.set(key, json.dumps(made))
            return made
        return self._heard(key)

    def to_leader(self, value: Any) -> list[Any]:
        self._said += 1
        key = f"fox/said/{self._said}"
        said = json.dumps(value)
        if not self.leads:
            self._store.set(f"{key}/{self.rank}", said)
            return []
        return [json.loads(said), *(self._heard(f"{key}/{rank}") for rank in range(1, self.size))]

    def wait(self) -> None:
        dist.barrier()

    def first_to_tell(self, exit_code: int) -> bool:
        """Whether nobody has told yet why all must end. From here on the others end with `exit_code`, too."""
        mine = f"{self.rank} {exit_code}"
        return self._store.compare_set(_TOLD, "", mine).decode() == mine

    def leave(self) -> None:
        dist.destroy_process_group()

    def _heard(self, key: str) -> Any:
        """What another rank says under `key`, once it does."""
        while not self._store.check([key]):
            self._raise_if_ended()
            time.sleep(_POLL_S)
        return json.loads(self._store.get(key))

    def _raise_if_ended(self) -> None:
        if self._store.check([_TOLD]):
            raise Ended(int(self._store.get(_TOLD).split()[1]))

    def exit_code_told(self) -> int | None:
        """With what the others end, where somebody has told of a failure."""
        try:
            self._raise_if_ended()
        except Ended as ended:
            return ended.exit_code
        return None


def _cleared(store: dist.Store, rank: int, size: int) -> dist.Store:
    """The store, but for all that was said in it before these processes were started.

    torchrun keeps one store over all its restarts (`_shared_tcp_store_server` of its rendezvous), and the number of a restart
    that it tells may differ between machines. So each process says a word that it has just made up, and the leader says its
    own with those that it has heard, until everybody has found theirs among them: that cannot be of an earlier start.
    Raises Failure where somebody does not come.
    """
    word = secrets.token_hex(8)
    store.set(f"fox/word/{rank}", word)
    deadline = time.monotonic() + _MEET_S
    while time.monotonic() < deadline:
        if rank == 0:
            heard = {str(other): store.get(f"fox/word/{other}").decode() for other in range(size)}
            store.set(_HEARD, json.dumps(heard))
            if store.check([f"fox/found/{word}/{other}" for other in range(1, size)]):
                return dist.PrefixStore(word, store)
        elif store.check([_HEARD]):
            heard = json.loads(store.get(_HEARD))
            if heard.get(str(rank)) == word:
                store.set(f"fox/found/{heard['0']}/{rank}", "")
                return dist.PrefixStore(heard["0"], store)
        time.sleep(_POLL_S)
    raise Failure(f"the {size} processes of this run did not all meet within {_MEET_S} s. Start them again.")


ALONE = Team()
_joined: Team = ALONE


def join() -> ManyRanks:
    """Meet the other processes that torchrun has started. Once a process."""
    global _joined
    team = ManyRanks()
    _joined = team
    return team


def current_team() -> Team:
    """The team that this process has joined, or itself alone. (torch's process group is one for the process, too.)"""
    return _joined
