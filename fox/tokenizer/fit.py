"""How well a vocabulary fits a text: how much of it goes into one token, how many tokens a word takes, and which entries it has no use for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fox.tokenizer.tokenizer import Tokenizer

_WORD = re.compile(r"\w+")
_AT_ONCE = 4_000_000


@dataclass
class Fit:
    """What a tokenizer makes of some text."""

    documents: int = 0
    bytes: int = 0
    words: int = 0
    """Runs of letters and digits. Where a language writes no spaces, as Chinese doesn't, such a run is more than a word."""
    tokens: int = 0
    used: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    """Of each entry: whether it occurs."""

    def with_(self, other: Fit) -> Fit:
        """What the same tokenizer makes of both texts."""
        return Fit(
            self.documents + other.documents,
            self.bytes + other.bytes,
            self.words + other.words,
            self.tokens + other.tokens,
            self.used | other.used,
        )

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / max(1, self.tokens)

    @property
    def tokens_per_word(self) -> float:
        """Fertility, as the literature calls it (Rust et al., arXiv 2012.15613)."""
        return self.tokens / max(1, self.words)


def fit_of(tokenizer: Tokenizer, texts: Iterable[str]) -> Fit:
    """The fit of a tokenizer to these texts. Raises UserError where it can't encode one."""
    fit = Fit(used=np.zeros(tokenizer.vocab_size, dtype=np.bool_))
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _AT_ONCE:
            _add(fit, tokenizer, batch)
            batch, size = [], 0
    _add(fit, tokenizer, batch)
    return fit


def unused_entries(tokenizer: Tokenizer, fits: Iterable[Fit]) -> int:
    """How many entries no text has used, special tokens not counted: these are in no text."""
    used = np.zeros(tokenizer.vocab_size, dtype=np.bool_)
    for fit in fits:
        used |= fit.used
    entries = set(tokenizer.backend.get_vocab(with_added_tokens=True).values()) - set(tokenizer.special_ids.values())
    return len(entries) - int(used[list(entries)].sum())


def _add(fit: Fit, tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer.encode_arrays(texts), strict=True):
        fit.documents += 1
        fit.bytes += len(text.encode())
        fit.words += sum(1 for _ in _WORD.finditer(text))
        fit.tokens += ids.size
        fit.used[ids] = True
