"""What a step's line in metrics.jsonl tells beside its loss: that by source, speed and its share of the machine's limit, memory, epochs.

B rows, L tokens a row, S sources
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fox.formats.token_shards import Shard
from fox.model import Transformer
from fox.model.loss import IGNORED
from fox.train.batches import Batch
from fox.train.curriculum import Row
from fox.train.machine import device, matrix_peak_flops, multiplies_in_bf16, peak_memory_bytes
from fox.train.speed import resident_bytes
from fox.train.team import Team


class LossBySource:
    """What the tokens of one step cost on average, by their source: added up pass for pass, then over the ranks.

    `rows` are those of the whole step, on all ranks. Tensors stay on `where` until the step is done.
    """

    def __init__(self, rows: Sequence[Row], where: torch.device) -> None:
        self._sources = sorted({_source(row) for row in rows})
        self._sums_S2 = torch.zeros(len(self._sources), 2, dtype=torch.float64, device=where)

    def add(self, rows: Sequence[Row], each_BL: Tensor, batch: Batch) -> None:
        """A pass: its rows, and the loss of each of its tokens in nats."""
        place_B = torch.tensor([self._sources.index(_source(row)) for row in rows], device=each_BL.device)
        learnt_BL = (batch.target_BL != IGNORED).to(each_BL.device)
        sums_B2 = torch.stack([each_BL.sum(1, dtype=torch.float64), learnt_BL.sum(1, dtype=torch.float64)], dim=1)
        self._sums_S2.index_add_(0, place_B, sums_B2)

    def means(self, team: Team) -> dict[str, float]:
        """Nats a learnt token, by source; a source of which nothing was learnt has none. A call for all ranks."""
        sums = dict(zip(self._sources, team.sum(self._sums_S2).tolist(), strict=True))
        return {source: nats / targets for source, (nats, targets) in sums.items() if targets}


def _source(row: Row) -> str:
    """All chunks of a row are of one source."""
    return row[0].lane.source


def peak_flops(precision: str, team: Team) -> float:
    """Operations a second of matrix products, of all ranks together: measured on all at the same time, for those of one machine
    share its cores and its memory. A call for all ranks."""
    team.wait()
    return team.sum_of_all(matrix_peak_flops(device(), multiplies_in_bf16(precision)))


class Gauges:
    """Those of one training, on its leader. `peak` is `peak_flops`, `rows_before` are the lines of the steps that are done."""

    def __init__(
        self,
        model: Transformer,
        peak: float,
        shards: Mapping[str, Shard],
        rows_before: Iterable[Mapping[str, Any]],
    ) -> None:
        lookup = 0 if model.lm_head is None else model.embed_tokens.weight.numel()  # reading a row is no product
        # Forward and backward multiply each token with each parameter three times, two operations each (arXiv 2001.08361).
        self._token_flops = 6 * (model.num_parameters() - lookup)
        self._peak_flops = peak
        self._epoch_tokens = {source: len(shard.tokens) for source, shard in shards.items()}
        self._seen: dict[str, float] = {}
        for row in rows_before:
            self._count(row["mix"])

    def of_step(self, mix: Mapping[str, float], tokens: int, took_s: float) -> dict[str, Any]:
        """`mix` are the step's tokens by source. `epoch` says how often each source has been seen by now; padding counts as seen."""
        self._count(mix)
        return {
            "tokens_per_second": round(tokens / took_s, 1),
            "share_of_peak": round(self._token_flops * tokens / took_s / self._peak_flops, 4),
            "memory_bytes": peak_memory_bytes(),
            "memory_now_bytes": resident_bytes(),
            "epoch": {source: round(seen / self._epoch_tokens[source], 4) for source, seen in self._seen.items()},
        }

    def _count(self, mix: Mapping[str, float]) -> None:
        for source, tokens in mix.items():
            self._seen[source] = self._seen.get(source, 0) + tokens
