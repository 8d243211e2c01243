"""A text's words, found by a rule that is fast: what stands between spaces is cut once and remembered, for most of it comes again.

The rules of Gopher, C4 and FineWeb count words and leave open what one is; datatrove, with which their thresholds were tried, asks spaCy. This cuts as
spaCy cuts English: punctuation at the ends of a word is a word of its own, and so are the end of a contraction (`do n't`) and the parts that a
hyphen joins; abbreviations keep their full stop, numbers and addresses all that is in them. Chinese, Japanese, Thai and their like write no
spaces: there two characters, in the scripts of South-East Asia four, stand for a word, about as many as their words have.
"""

from __future__ import annotations

import re
from itertools import chain

import numpy as np

MARKS = (
    "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc"
    "\u06df-\u06e8\u06ea-\u06ed\u0711\u0730-\u074a\u07a6-\u07b0\u07eb-\u07f3\u0816-\u082d\u08d3-\u0963\u0971-\u0df3\u135d-\u135f"
    "\u1dc0-\u1dff\u20d0-\u20f0"
)
r"""Signs that belong to the letter before them and are none for `\w`, as a part of a character class."""

_IN_TWOS = (
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"  # kana, Han
)
_IN_FOURS = "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u0f40-\u0fbc\u1000-\u1049\u1780-\u17d3"  # Thai, Lao, Tibetan, Burmese, Khmer
UNSPACED = _IN_TWOS + _IN_FOURS
"""Scripts that write no space between words, as a part of a character class."""

REMEMBERED = 2**17
LONGEST_REMEMBERED = 32
MOST_REMEMBERED = 4
"""How many pieces of text are remembered, of at most so many characters and words: 30 MB of ordinary texts, and 120 MB whatever comes. All are
forgotten when there are more, for texts have a tail of pieces that never come again."""

COUNTS, HAS_LETTER = 2, 1
"""Bits of a word's kind: that it has a letter or a digit; that it has a letter."""

_OUTSIDE = re.compile(rf"(?:[^\w{MARKS}@/\\|~^+-]|_)*")
"""Signs that are cut off where a word begins or ends with them."""
_SIGNS = re.compile(r"\.\.+|--+|.", re.DOTALL)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_UNSPACED_WORDS = re.compile(rf"[{_IN_TWOS}]{{1,2}}|[{_IN_FOURS}]{{1,4}}|(?:(?![{UNSPACED}])[\w{MARKS}])+|.", re.DOTALL)
_ADDRESS = re.compile(r"https?://\S+|www\.\S+|[\w.+-]{1,64}@[\w.-]+")
_JOINT = re.compile(
    r"""(
      \.\.+ | …
    | (?<=[^\W_]) (?: --+ | [-–—~] ) (?=[^\W\d_])
    | (?<=[^\W_]) [:<>=/] (?=[^\W\d_])
    | (?<=[^\W\d_]) , (?=[^\W\d_])
    | (?<=[a-z"'’”]) \. (?=[A-Z"'‘“])
    | (?<=\d) [-+*^] (?=[\d-])
    | (?<=[^\W\d_]) (?: n['’]t | ['’](?:s|S|d|m|re|ve|ll) ) \Z
    | (?<=\d) (?:km|kg|cm|mm|pm|am) \Z
    )""",
    re.VERBOSE,
)
"""Where a word is cut within: the same joints as in spaCy's English."""
_ABBREVIATION = re.compile(
    r"(?:.*[\W\d_])?[A-Z]|.*\.[A-Za-z]|[a-z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Gov|Sen|Rep|Rev|Mt|Inc|Ltd|Co|Corp|Bros|vs|v\.s|Messrs|Ph\.D"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|Ala|Ariz|Ark|Calif|Colo|Conn|Del|Fla|Ga|Ill|Ind|Kans?|Ky|La|Mass|Md|Mich|Minn|Miss|Mo"
    r"|Mont|Nebr?|Nev|Okla|Ore|Pa|Tenn|Va|Wash|Wis",
    re.DOTALL,
)
"""What keeps the full stop after it: initials, and what English shortens most."""
_LONGEST_ABBREVIATION = 32


def words_of(text: str) -> list[str]:
    """The words of a text in their order, punctuation included."""
    return list(chain.from_iterable(map(_words.__getitem__, text.split())))


def kinds_of(words: list[str]) -> np.ndarray:
    """For each word its characters times 4, with COUNTS and HAS_LETTER where they hold (int64)."""
    return np.fromiter(map(_kinds.__getitem__, words), dtype=np.int64, count=len(words))


def has_unspaced(text: str) -> bool:
    """Whether there is a character of a script that writes no spaces."""
    return not text.isascii() and bool(_UNSPACED.search(text))


def forget() -> None:
    """Forget all words, as in a process that has just begun."""
    _words.clear()
    _kinds.clear()


class _Words(dict[str, tuple[str, ...]]):
    """The words of each piece of text that has no space in it."""

    def __missing__(self, piece: str) -> tuple[str, ...]:
        words = tuple(_cut(piece))
        if len(piece) <= LONGEST_REMEMBERED and len(words) <= MOST_REMEMBERED:
            if len(self) >= REMEMBERED:
                self.clear()
            self[piece] = words
        return words


class _Kinds(dict[str, int]):
    """The kind of each word."""

    def __missing__(self, word: str) -> int:
        letters = any(map(str.isalpha, word))
        kind = 4 * len(word) + COUNTS * (letters or any(map(str.isalnum, word))) + HAS_LETTER * letters
        if len(word) <= LONGEST_REMEMBERED:
            if len(self) >= REMEMBERED:
                self.clear()
            self[word] = kind
        return kind


_words, _kinds = _Words(), _Kinds()


def _cut(piece: str) -> list[str]:
    if piece.isascii() and piece.isalpha():
        return [piece]
    if has_unspaced(piece):
        return _UNSPACED_WORDS.findall(piece)
    begin = _signs_at_the_beginning(piece)
    end = max(begin, len(piece) - _signs_at_the_beginning(piece[::-1]))
    if (
        piece.startswith(".", end)
        and end - begin <= _LONGEST_ABBREVIATION
        and _ABBREVIATION.fullmatch(piece, begin, end)
    ):
        end += 1
    core = piece[begin:end]
    words = [core] if _ADDRESS.fullmatch(core) else [part for part in _JOINT.split(core) if part]
    return [*_SIGNS.findall(piece[:begin]), *words, *_SIGNS.findall(piece[end:])]


def _signs_at_the_beginning(piece: str) -> int:
    match = _OUTSIDE.match(piece)
    assert match  # it matches nothing, too
    return match.end()
