"""A stage of the curriculum: its tokens, its chunks, and its steps, which may grow."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fox.recipe.section import LARGEST, Positive, Section, Whole, whole


def _chunk_length(value: Any) -> Any:
    if not isinstance(value, dict) or _is_by_length(value):
        return _one_chunk_length(value)
    if not value:
        raise ValueError(_CHUNK_LENGTH)
    return {key: _one_chunk_length(of_key) for key, of_key in value.items()}


def _one_chunk_length(value: Any) -> Any:
    """A length, or shares of tokens by length; lengths stay text, as TOML's keys are."""
    if isinstance(value, dict):
        lengths = [int(key) for key in value] if _is_by_length(value) else []
        shares = [share for share in value.values() if type(share) in (int, float) and 0 < share < math.inf]
        if (
            lengths
            and len(shares) == len(set(lengths)) == len(value)
            and all(0 < length <= LARGEST for length in lengths)
        ):
            return {str(length): float(share) for length, share in zip(lengths, shares, strict=True)}
    elif type(length := whole(value)) is int and 0 < length <= LARGEST:
        return length
    raise ValueError(_CHUNK_LENGTH)


def _is_by_length(table: dict[str, Any]) -> bool:
    return bool(table) and all(re.fullmatch("[0-9]{1,19}", key) for key in table)


_CHUNK_LENGTH = (
    "must be a whole number above 0, or a table of such by source or kind: { text = 512, chat = 256 }, "
    "or shares of tokens by length: { 128 = 0.3, 256 = 0.7 }"
)

ByLength = dict[str, float]
"""Shares of tokens by chunk length."""


class BatchRamp(Section):
    """Steps that grow in a straight line with the tokens that the stage has seen, rounded to what divides first and last step."""

    start: Whole
    """Tokens of the stage's first step: whole passes, as of batch_tokens."""
    tokens: Whole
    """How many tokens of the stage it takes to reach batch_tokens."""


class Stage(Section):
    """One stage of the curriculum."""

    tokens: Whole
    """How many tokens it trains on; rounded to whole steps."""
    chunk_length: Annotated[int | dict[str, int | float | ByLength], BeforeValidator(_chunk_length)]
    """Tokens that see each other, at most; one number, one for each source or kind, or shares of tokens by length: `{ 128 = 0.3, 256 = 0.7 }`."""
    rows: Whole
    """Rows, each of the longest chunk, in one forward and backward pass on one device; or `"auto"`: as many as fit the free memory, and are worth it. Other rows change no more than the last digits of a loss."""
    batch_tokens: Whole
    """Tokens a step of the optimiser."""
    batch_ramp: BatchRamp | None = None
    """Begin the stage with smaller steps, which grow to batch_tokens: `{ start = 65536, tokens = 1e9 }`."""
    mix: Annotated[dict[str, Positive], Field(min_length=1)]
    """Relative weights of sources, or of kinds: `text` stands for all text sources that the table does not name."""
    mix_follows: Literal["odm"] | None = None
    """Let the mixture follow the measured loss of each source: Online Data Mixing (arXiv 2312.02406), from `mix` on. Off unless it is named."""
    mix_every_steps: Whole = 20
    """How many steps lie between two changes of a mixture that follows the loss."""

    def lengths_of(self, mix_key: str) -> dict[int, float]:
        """The chunk lengths of a key of the mix, each with its share of the tokens; the shares sum to 1."""
        of_key: Any = self.chunk_length
        if isinstance(of_key, dict) and not _is_by_length(of_key):
            of_key = of_key[mix_key]
        if isinstance(of_key, int):
            return {of_key: 1.0}
        total = sum(of_key.values())
        return {int(length): share / total for length, share in of_key.items()}

    @property
    def chunk_length_by_key(self) -> dict[str, Any] | None:
        """The chunk length of each source or kind, where each has its own."""
        table = self.chunk_length
        return table if isinstance(table, dict) and not _is_by_length(table) else None

    @property
    def row_length(self) -> int:
        """Tokens in a row: the longest chunk. Shorter chunks share a row and do not see each other."""
        keys = self.chunk_length_by_key or [""]
        return max(length for key in keys for length in self.lengths_of(key))

    @property
    def steps(self) -> int:
        in_ramp = len(self._ramp)
        return max(1, in_ramp + round((self.tokens - sum(self._ramp)) / self.batch_tokens))

    @property
    def total_tokens(self) -> int:
        """Of all its steps together: `tokens`, rounded to whole steps."""
        return self.tokens_before(self.steps)

    def batch_tokens_of(self, step: int) -> int:
        """Tokens of the stage's `step` (from 0)."""
        return self._ramp[step] if step < len(self._ramp) else self.batch_tokens

    def tokens_before(self, step: int) -> int:
        """Tokens of the stage's steps before `step` (from 0)."""
        return sum(self._ramp[:step]) + max(0, step - len(self._ramp)) * self.batch_tokens

    def steps_within(self, tokens: int) -> int:
        """How many of the stage's first steps begin before so many of its tokens are seen."""
        seen = steps = 0
        for batch_tokens in self._ramp:
            if seen >= tokens:
                return steps
            seen, steps = seen + batch_tokens, steps + 1
        return steps + max(0, -(-(tokens - seen) // self.batch_tokens))

    @property
    def _ramp(self) -> tuple[int, ...]:
        """The tokens of each step of the ramp."""
        if self.batch_ramp is None:
            return ()
        return _steps_of_ramp(self.batch_ramp.start, self.batch_ramp.tokens, self.batch_tokens, self.tokens)


@lru_cache(maxsize=64)
def _steps_of_ramp(start: int, ramp_tokens: int, batch_tokens: int, most: int) -> tuple[int, ...]:
    unit = math.gcd(start, batch_tokens)  # so that as many devices as share the first and the last step share all
    steps: list[int] = []
    seen = 0
    while seen < min(ramp_tokens, most):
        wanted = start + (batch_tokens - start) * seen / ramp_tokens
        steps.append(round(wanted / unit) * unit)
        seen += steps[-1]
    return tuple(steps)


def steps_saved(stages: Iterable[Stage], every_steps: int, after_tokens: int = 0) -> list[int]:
    """After which steps of all stages together (counted from 1) a checkpoint is saved that has seen more than `after_tokens`;
    after the last one in any case. Oldest first."""
    ends: set[int] = set()
    early = steps = seen = 0
    for stage in stages:
        early += bisect_right(range(1, stage.steps + 1), after_tokens - seen, key=stage.tokens_before)
        steps += stage.steps
        seen += stage.total_tokens
        ends.add(steps)
    saved = ends | set(range(every_steps, steps + 1, every_steps))
    return sorted(step for step in saved if step > early or step == steps)
