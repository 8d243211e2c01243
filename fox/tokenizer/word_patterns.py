"""The rules by which byte-level tokenizers cut text into words, as patterns for Python's own `re`.

The tokenizers library asks Oniguruma, which knows Unicode's classes of characters; `re` knows none of them. So the classes are asked of the library
itself, once a process, and written into the pattern as ranges: both agree on each character, whatever versions of Unicode the two were built with.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, pre_tokenizers

from fox.tokenizer.llama_cpp import DIGIT, GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS, cuts_of

Members = npt.NDArray[np.bool_]
"""Of each code point: whether it is in a class."""

_POINTS = 0x110000
_ASTRAL = 0x10000
"""The first code point of more than 16 bits. `re` keeps the classes of those below in a table, and tries the ranges of the others one by one."""

# Where Unicode has put characters: three planes, the reserve of ideographs, and tags. The rest is unassigned, or private: of no class.
_ASSIGNED = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]

SAFE_CUT = re.compile(r"(?<=[!-~])(?= )")
"""Where a text may be cut in two without any word changing: no rule has a space behind anything else than space."""


def word_pattern(pre_tokenizer: tokenizers.pre_tokenizers.PreTokenizer | None) -> re.Pattern[str] | None:
    """The pattern whose matches, one after the other, are the words that this pre-tokenizer makes of any text; None for a rule that isn't known here."""
    if pre_tokenizer is None:
        return None
    state = pre_tokenizer.__getstate__()
    cuts = cuts_of(json.loads(state))
    return _compiled(cuts, b'"type":"Digits"' in state) if cuts else None


@lru_cache(maxsize=8)
def _compiled(cuts: tuple[str, ...], has_digits_step: bool) -> re.Pattern[str] | None:
    letters, numbers, spaces = _classes()
    if spaces[_ASTRAL:].any():  # no version of Unicode has such
        return None
    if cuts in ((LLAMA3_WORDS,), (QWEN2_WORDS,)):
        return re.compile(_llama3(letters, numbers, spaces, digits_together=3 if cuts == (LLAMA3_WORDS,) else 1))
    if cuts == (GPT2_WORDS,):
        return re.compile(_gpt2(letters, numbers, spaces, np.zeros_like(letters)))
    if cuts == (DIGIT, GPT2_WORDS):
        return re.compile(_gpt2(letters, numbers, spaces, _digits() if has_digits_step else numbers))
    return None


def _llama3(letters: Members, numbers: Members, spaces: Members, digits_together: int) -> str:
    L, N, S, P = _Class(letters), _Class(numbers), _Class(spaces), _Class(~(letters | numbers | spaces))
    in_front = ~(letters | numbers)
    in_front[[ord("\r"), ord("\n")]] = False
    X = _Class(in_front)
    together = f"{{1,{digits_together}}}"
    return "|".join(
        [
            r"'(?:[sSſtTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])",  # ſ is an s without regard to case
            rf"[{X.low}]?[{L.low}]++{_ALONE}",
            rf"(?:{X.one})?{L.run}",
            rf"(?:{N.one}){together}",
            rf" ?[{P.low}]++{_ALONE}[\r\n]*+",
            rf" ?{P.run}[\r\n]*+",
            rf"[{S.low}]*[\r\n]++",
            rf"[{S.low}]+(?![^{S.low}])",
            rf"[{S.low}]",
        ]
    )


def _gpt2(letters: Members, numbers: Members, spaces: Members, digits: Members) -> str:
    """With `digits` cut out one by one before: they are then as the end of the text to what stands before them."""
    D = _Class(digits)
    L, N, S = (_Class(members & ~digits) for members in (letters, numbers, spaces))
    P = _Class(~(letters | numbers | spaces | digits))
    ends = _Class(spaces | digits)
    return "|".join(
        [
            r"'(?:[stmd]|re|ve|ll)",
            *(rf" ?[{few.low}]++{_ALONE}" for few in (L, P, N) if few.low),
            *([D.one] if D.low else []),
            *(rf" ?{few.run}" for few in (L, N, P)),
            rf"[{S.low}]+(?![^{ends.all}])",
            rf"[{S.low}]",
        ]
    )


# The common case is tried first: a run of characters below _ASTRAL, and none of the others behind it, which could belong to it.
_ALONE = f"(?![{chr(_ASTRAL)}-{chr(_POINTS - 1)}])"


class _Class:
    """Characters of a class, for a pattern.

    `low` are those below _ASTRAL, to be put in brackets, and `all` are all of them; `one` is a pattern for any one of them, and
    `run` for as many as there are, and both are done with most characters after one look into a table.
    """

    def __init__(self, members: Members) -> None:
        self.low = _ranges(members[:_ASTRAL], 0)
        self.all = self.low + _ranges(members[_ASTRAL:], _ASTRAL)
        # What is below, and what of the rest is no member, is not to be in it: so `re` refuses all below after its first test.
        high = f"[^{_range(0, _ASTRAL - 1)}{_ranges(~members[_ASTRAL:], _ASTRAL)}]" if members[_ASTRAL:].any() else ""
        parts = [part for part in (f"[{self.low}]" if self.low else "", high) if part] or ["(?!)"]
        self.one = "|".join(parts)
        self.run = f"(?:{'|'.join(f'{part}++' for part in parts)})++"


def _ranges(members: Members, first: int) -> str:
    edges = np.flatnonzero(np.diff(members.astype(np.int8), prepend=0, append=0)).reshape(-1, 2) + first
    return "".join(_range(start, end - 1) for start, end in edges.tolist())


def _range(first: int, last: int) -> str:
    return f"{re.escape(chr(first))}-{re.escape(chr(last))}"


@lru_cache(maxsize=1)
def _classes() -> tuple[Members, Members, Members]:
    r"""\p{L}, \p{N} and \s, as the library has them."""
    text = "".join(map(chr, _ASSIGNED))
    runs = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}+|\s+"), "isolated").pre_tokenize_str(text)
    starts = [start for _, (start, _) in runs]
    firsts = "".join(text[start] for start in starts)
    lengths = np.diff([*starts, len(text)])
    found = []
    for pattern in (r"\p{L}", r"\p{N}", r"\s"):
        is_member = np.ones(len(firsts), dtype=np.bool_)
        for _, (start, end) in pre_tokenizers.Split(Regex(pattern), "removed").pre_tokenize_str(firsts):
            is_member[start:end] = False
        members = np.zeros(_POINTS, dtype=np.bool_)
        members[_ASSIGNED] = np.repeat(is_member, lengths)
        found.append(members)
    return found[0], found[1], found[2]


@lru_cache(maxsize=1)
def _digits() -> Members:
    r"""What the library's step `Digits` cuts out. It goes by Rust's tables, which are of another version of Unicode than Oniguruma's \p{N}."""
    members = np.zeros(_POINTS, dtype=np.bool_)
    # Between letters, so that whatever is cut out stands alone, and nothing else does.
    text = "".join(f"a{chr(point)}a" for point in _ASSIGNED)
    for word, _ in pre_tokenizers.Digits(individual_digits=True).pre_tokenize_str(text):
        if len(word) == 1:
            members[ord(word)] = True
    members[ord("a")] = False  # the text's first and last letter may stand alone
    return members
