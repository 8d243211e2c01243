"""Online Data Mixing: the mixture follows the measured loss of each source (Albalak et al., arXiv 2312.02406).

A multi-armed bandit (Exp3, Auer et al. 2002) whose arms are the sources and whose reward is a source's loss: what is predicted
badly has more to teach. There is no model to compare with and no second run. All of it is a function of the losses, and the
shares that come of it go onto the run's record, so that a run which goes on from a checkpoint has the same mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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

    def after(self, losses: Mapping[str, float]) -> Mixing:
        """What it knows once sources have had these losses a token since the last change; who was not seen keeps its reward.

        A loss is divided by the share that its source had, so that one that is drawn seldom is not taken for an easy one; where
        the recipe's mixture is not even, by that share in units of the recipe's.
        """
        had = self.shares
        rewards = dict(self.rewards) or dict.fromkeys(self.first, 0.0)
        for name, loss in losses.items():
            weighted = loss * len(self.first) * self.first[name] / had[name]
            rewards[name] = SMOOTHING * rewards[name] + (1 - SMOOTHING) * weighted
        return Mixing(self.first, self.changes + 1, rewards)

    def event(self, step: int, stage: str) -> dict[str, Any]:
        """The record's entry for a mixture from the run's `step` on (counted from 1), with all that `resumed` needs."""
        return {"event": "mix", "step": step, "stage": stage, "mix": self.shares, "rewards": dict(self.rewards)}


def resumed(first: Mapping[str, float], events: list[dict[str, Any]], stage: str) -> Mixing:
    """The state that a stage's changes on the record left behind; `first` is the mixture that the recipe gives it."""
    mine = [event for event in events if event["event"] == "mix" and event["stage"] == stage]
    return Mixing(first, len(mine), mine[-1]["rewards"] if mine else {})


def _exploring(count: int, turn: int) -> float:
    return min(1 / count, math.sqrt(math.log(count) / (count * turn)))
