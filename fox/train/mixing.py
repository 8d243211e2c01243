"""Online Data Mixing: the mixture follows the measured loss of each source (Albalak et al., arXiv 2312.02406).

A multi-armed bandit (Exp3, Auer et al. 2002) whose arms are the sources and whose reward is a source's loss: what is predicted
badly has more to teach. There is no model to compare with and no second run. All of it is a function of the losses, and the
shares that come of it go onto the run's record, so that a run which goes on from a checkpoint has the same mixtures.

Beside the paper's rule there is one of ours: no source is given more than `train.max_epochs` of it over the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from fox.train.curriculum import Event, Lane, StageOrder

Row = Mapping[str, Any]
"""A line of metrics.jsonl."""

SMOOTHING = 0.9
"""How much of a source's reward each change keeps (the paper's alpha)."""


@dataclass(frozen=True)
class Mixing:
    """What a mixture that follows the loss remembers. `first` is the recipe's mixture; `rewards` are in nats a token."""

    first: Mapping[str, float]
    changes: int = 0
    rewards: Mapping[str, float] = field(default_factory=dict)

    @property
    def shares(self) -> dict[str, float]:
        """Each source's share of the tokens until the next change; they sum to 1, and none is 0.

        The paper's policy with its exploration rate (algorithm 1: eps = min(1 / K, sqrt(ln K / (K t)))), where the even
        mixture of exploring, 1 / K each, is the recipe's: small sources stay small while nothing is known.
        """
        if not self.changes:
            return dict(self.first)
        count = len(self.first)
        now, before = (_exploring(count, turn) for turn in (self.changes + 1, self.changes))
        highest = max(self.rewards.values())
        weights = {
            name: share * math.exp(before * (self.rewards[name] - highest)) for name, share in self.first.items()
        }
        total = sum(weights.values())
        kept = 1 - count * now
        return {name: kept * weights[name] / total + (1 - kept) * share for name, share in self.first.items()}

    def after(self, losses: Mapping[str, float], had: Mapping[str, float]) -> Mixing:
        """What it knows once sources, drawn with the shares they `had`, have had these losses a token since the last change.

        Who was not seen keeps its reward. A loss is divided by the share that its source had, so that one that is drawn seldom is
        not taken for an easy one; where the recipe's mixture is not even, by that share in units of the recipe's.
        """
        rewards = dict(self.rewards) or dict.fromkeys(self.first, 0.0)
        for name, loss in losses.items():
            weighted = loss * len(self.first) * self.first[name] / had[name]
            rewards[name] = SMOOTHING * rewards[name] + (1 - SMOOTHING) * weighted
        return Mixing(self.first, self.changes + 1, rewards)


def resumed(first: Mapping[str, float], events: Iterable[Event], stage: str) -> Mixing:
    """The state that a stage's changes on the record left behind; `first` is the mixture that the recipe gives it."""
    mine = _mixes(events, stage)
    return Mixing(first, len(mine), mine[-1]["rewards"] if mine else {})


def within(shares: Mapping[str, float], most: Mapping[str, float]) -> dict[str, float]:
    """Shares of which none is above its `most`; what one may not have, the others get, by their shares.

    Where all of them together may not have so much, each has its part of what they may.
    """
    held: dict[str, float] = {}
    while len(held) < len(shares):
        free = {name: share for name, share in shares.items() if name not in held}
        scale = (1 - sum(held.values())) / sum(free.values())
        over = {name: most[name] for name, share in free.items() if share * scale > most[name]}
        if not over:
            return {name: held.get(name, share * scale) for name, share in shares.items()}
        held |= over
    total = sum(held.values())
    return {name: held[name] / total for name in shares} if total else dict(shares)


class Mixtures:
    """The orders of a run's stages with their mixtures as they are by now, and what the next change goes by.

    `rows` are the last lines of metrics.jsonl, at least `rows_needed` of them; `most_tokens` says how much of
    each source the run may see, and `lanes` have the chunks that there are of a stage's lanes once it has begun. All ranks have the
    same. It holds nothing that a run which goes on could not have again: a change that is on record stands, also where a step
    before it is done anew or is passed over.
    """

    def __init__(
        self,
        orders: Sequence[StageOrder],
        events: Sequence[Event],
        rows: Iterable[Row],
        most_tokens: Mapping[str, float],
        lanes: Mapping[tuple[str, Lane], Sized],
    ) -> None:
        self._planned = {order.name: order for order in orders}
        self._most_tokens = most_tokens
        self._lanes = lanes
        self._nats: dict[str, float] = {}
        self._tokens: dict[str, float] = {}
        self.orders = {order.name: order.after(events) for order in orders}
        for row in rows:
            self._count(row)

    def after_step(self, row: Row, events: Sequence[Event]) -> dict[str, Any] | None:
        """Count a step that is done, told by `step`, `stage`, `mix`, `loss_by_source` and `skipped` of its row.

        The change that comes after it, for the record, where one is due and is not on it yet. There is none where all sources together
        may give no more than they have to: what was planned, to the row, is all that there is.
        """
        done = self._count(row)
        planned = self._planned[row["stage"]]
        if planned.stage.mix_follows is None or done % planned.stage.mix_every_steps or done == planned.steps:
            return None
        step = row["step"] + 1
        if any(event["event"] == "mix" and event["step"] >= step for event in events):
            return None  # a step that is done again, and what came after it is on record
        before = [event for event in _mixes(events, planned.name) if event["step"] < step]
        first = planned.mix_at(0)
        losses = {name: self._nats[name] / tokens for name, tokens in self._tokens.items()}
        mixing = resumed(first, before, planned.name).after(losses, before[-1]["mix"] if before else first)
        most = self._most_shares(planned.name, done)
        if sum(most.values()) < 1:
            return None
        mix = within(mixing.shares, most)
        event = {"event": "mix", "step": step, "stage": planned.name, "mix": mix, "rewards": dict(mixing.rewards)}
        if held := [name for name, share in mixing.shares.items() if mix[name] < share]:
            event["held"] = held
        self.orders[planned.name] = self.orders[planned.name].after([event])
        return event

    def _count(self, row: Row) -> int:
        """How many steps of the row's stage are done with it. What is skipped or passed over has taught nothing."""
        order = self._planned[row["stage"]]
        done: int = row["step"] - order.first_step
        if (done - 1) % order.stage.mix_every_steps == 0:
            self._nats, self._tokens = {}, {}
        if "skipped" not in row:
            for name, loss in row.get("loss_by_source", {}).items():
                self._nats[name] = self._nats.get(name, 0.0) + loss * row["mix"][name]
                self._tokens[name] = self._tokens.get(name, 0.0) + row["mix"][name]
        return done

    def _most_shares(self, stage: str, done: int) -> dict[str, float]:
        """Of what is left of a stage, the share that each source may have without being seen too often over the run, in whole rows.

        Where a source has several chunk lengths, each change of the mixture may round the rows of one up, by less than a row.
        """
        order = self.orders[stage]
        row_length = order.stage.row_length
        seen = [other.tokens_given(other.steps) for other in self.orders.values() if other is not order]
        seen.append(order.tokens_given(done))
        rest = (order.tokens_before(order.steps) - order.tokens_before(done)) // row_length
        given = order.rows_given(done)
        most: dict[str, float] = {}
        for name, share in order.mix_at(0).items():
            mine = [lane for lane in order.lanes if lane.source == name]
            rounded_up = len(mine) > 1
            rows = (self._most_tokens[name] - sum(of.get(name, 0) for of in seen)) // row_length - len(mine) + 1
            for lane in mine:
                if (stage, lane) in self._lanes:
                    of_lane = len(self._lanes[stage, lane]) * lane.length // row_length - given[lane] - rounded_up
                    rows = min(rows, of_lane * share / order.shares[lane])
            most[name] = max(0.0, rows) / rest
        return most


def rows_needed(orders: Iterable[StageOrder]) -> int:
    """How many of the newest lines of metrics.jsonl `Mixtures` has to have."""
    return max((order.stage.mix_every_steps for order in orders if order.stage.mix_follows), default=0)


def _mixes(events: Iterable[Event], stage: str) -> list[Event]:
    return [event for event in events if event["event"] == "mix" and event["stage"] == stage]


def _exploring(count: int, turn: int) -> float:
    return min(1 / count, math.sqrt(math.log(count) / (count * turn)))
