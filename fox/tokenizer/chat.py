"""Conversations to token ids, through the one template that is stored with the tokenizer.

What people write must never turn into a special token, also where a template trims it or puts two messages side by side.
So before rendering, whatever reads like a special token inside a message gets a stand-in for its first character, one that
nobody used; the rendered text is cut at the special tokens that remain, which only the template can have written; then the
characters come back.
The loss mask is the template's own `{% generation %}` spans, marked the same way. What is learnt is encoded apart from its
neighbours, so that it is the same tokens as when the model writes it; but where a tokenizer puts a space in front of each text,
a mark would put one there too, so such text is encoded whole and the mask found by its tokens' places.
The rendering itself is in template.py: a template may be hostile.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from itertools import accumulate

import numpy as np

from fox.errors import UserError
from fox.formats.token_shards import Mask
from fox.tokenizer.backend import WHITE_SPACE
from fox.tokenizer.template import render
from fox.tokenizer.tokenizer import Tokenizer

Message = dict[str, str]


@dataclass(frozen=True)
class EncodedChat:
    """`ids` (T,) of a whole conversation, and `is_learnt` (T,): True on what the assistant says, its end token included."""

    ids: np.ndarray
    is_learnt: Mask


def encode_chats(
    tokenizer: Tokenizer,
    chats: Sequence[Sequence[Message]],
    add_generation_prompt: bool = False,
    now: datetime | None = None,
) -> list[EncodedChat]:
    """Each conversation as the model sees it, at the time `now` or by the clock.

    Raises UserError where the template is missing, broken or refuses the messages."""
    cut = [
        _joined(tokenizer, _stripped(tokenizer, segments))
        for segments in _segments(tokenizer, chats, add_generation_prompt, now)
    ]
    # Some tokenizers treat a text's very beginning in their own way, so what stands there is encoded apart from the rest.
    is_first = [number == 0 for runs in cut for number, run in enumerate(runs) if run[0].special_id is None]
    plain = ["".join(segment.text for segment in run) for runs in cut for run in runs if run[0].special_id is None]
    first, rest = (
        iter(
            _encoded(
                tokenizer, [text for text, is_it in zip(plain, is_first, strict=True) if is_it is at_start], at_start
            )
        )
        for at_start in (True, False)
    )
    plain_ids = iter([next(first if is_it else rest) for is_it in is_first])
    encoded = []
    for runs in cut:
        ids: list[int] = []
        learnt: list[bool] = []
        for run in runs:
            if (special_id := run[0].special_id) is not None:
                new, starts = [special_id], [0]
            else:
                new, starts = next(plain_ids)
            ids += new
            learnt += [run[0].is_learnt] * len(new) if len(run) == 1 else _learnt_at(run, starts)
        encoded.append(EncodedChat(np.array(ids, dtype=np.int64), np.array(learnt, dtype=np.bool_)))
    return encoded


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False, now: datetime | None = None
) -> EncodedChat:
    """`encode_chats` for one conversation."""
    return encode_chats(tokenizer, [messages], add_generation_prompt, now)[0]


def rendered_chats(
    tokenizer: Tokenizer,
    chats: Sequence[Sequence[Message]],
    add_generation_prompt: bool = False,
    now: datetime | None = None,
) -> list[str]:
    """Each conversation as the template writes it, at the time `now` or by the clock. For other engines' eyes: in text, nothing tells special tokens from look-alikes."""
    return [
        "".join(segment.text for segment in segments)
        for segments in _segments(tokenizer, chats, add_generation_prompt, now)
    ]


def check_template(tokenizer: Tokenizer) -> None:
    """Raise UserError where the tokenizer's template can't tell what the assistant says, which tuning learns from."""
    probe = encode_chat(tokenizer, [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}])
    if not probe.is_learnt.any():
        raise UserError(
            "tokenizer.chat_template",
            problem="marks nothing as the assistant's, so there would be nothing to learn from",
            mend="Put {% generation %} and {% endgeneration %} around what the assistant says.",
        )


@dataclass(frozen=True)
class _Segment:
    text: str
    special_id: int | None
    is_learnt: bool


@dataclass(frozen=True)
class _Guarded:
    """A conversation in which nothing reads like a special token, with the characters that nobody used in it."""

    messages: list[Message]
    opening: str
    closing: str
    as_written: dict[int, str]
    """What stands for a special token's first character, and that character."""


def _segments(
    tokenizer: Tokenizer, chats: Sequence[Sequence[Message]], add_generation_prompt: bool, now: datetime | None
) -> list[list[_Segment]]:
    if not chats:
        return []
    template = _template(tokenizer)
    specials = tuple(sorted(tokenizer.special_ids, key=len, reverse=True))
    guarded = [_guard(specials, template, chat) for chat in chats]
    shared = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **tokenizer.token_names}
    own = [{"messages": chat.messages, "generation_marks": (chat.opening, chat.closing)} for chat in guarded]
    rendered = render(template, shared, own, now)
    return [_cut(tokenizer.special_ids, specials, chat, text) for chat, text in zip(guarded, rendered, strict=True)]


def _template(tokenizer: Tokenizer) -> str:
    """The tokenizer's template; of several, as older releases of transformers wrote them, the one that is named default."""
    template = tokenizer.config.get("chat_template")
    if isinstance(template, list):
        named = {
            entry["name"]: entry["template"]
            for entry in template
            if isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "template"))
        }
        if "default" not in named:
            raise UserError(
                "tokenizer.chat_template",
                problem=f"is a list in which none is named default: it has {', '.join(map(repr, named)) or 'no template'}",
                mend="Write the one that you mean into the model's chat_template.jinja.",
            )
        return named["default"]
    if not isinstance(template, str):
        raise UserError(
            "tokenizer.chat_template", problem="this model has none", mend="Tune it first, or chat with a tuned model."
        )
    return template


def _guard(specials: tuple[str, ...], template: str, messages: Sequence[Message]) -> _Guarded:
    """`specials` are the names of the special tokens, the longest first."""
    _check(messages)
    firsts = sorted({special[0] for special in specials})
    written = template + "".join(specials) + "".join(value for message in messages for value in message.values())
    opening, closing, *others = _unused_characters(written, 2 + len(firsts))
    stand_in = dict(zip(firsts, others, strict=True))
    guarded = [
        {key: _look_alike(specials).sub(lambda first: stand_in[first[0]], value) for key, value in message.items()}
        for message in messages
    ]
    return _Guarded(guarded, opening, closing, {ord(other): first for first, other in stand_in.items()})


def _cut(special_ids: dict[str, int], specials: tuple[str, ...], guarded: _Guarded, rendered: str) -> list[_Segment]:
    """The rendered text, cut at its special tokens and at the marks around what the assistant says."""
    segments: list[_Segment] = []
    is_learnt = False
    of_special: dict[tuple[str, bool], _Segment] = {}  # one for all of a kind: a hostile template may write millions
    marks = [*map(re.escape, specials), guarded.opening, guarded.closing]
    for piece in re.split(f"({'|'.join(marks)})", rendered):
        if piece == guarded.opening:
            is_learnt = True
        elif piece == guarded.closing:
            is_learnt = False
        elif piece in special_ids:
            new = _Segment(piece, special_ids[piece], is_learnt)
            segments.append(of_special.setdefault((piece, is_learnt), new))
        elif piece:
            segments.append(_Segment(piece.translate(guarded.as_written), None, is_learnt))
    return segments


def _encoded(tokenizer: Tokenizer, texts: list[str], at_start: bool) -> list[tuple[list[int], list[int]]]:
    """The ids of each text, and where they start if its parts are not encoded apart."""
    if tokenizer.marks_beginnings:
        return tokenizer.encode_batch_with_starts(texts, at_start)
    return [(ids, []) for ids in tokenizer.encode_batch(texts, at_start)]


def _stripped(tokenizer: Tokenizer, segments: list[_Segment]) -> list[_Segment]:
    """The segments without the white space that their special tokens take from their neighbours, as Phi-3's do."""
    if not tokenizer.strips_left and not tokenizer.strips_right:
        return segments
    kept: list[_Segment] = []
    strips = False
    for segment in segments:
        if segment.special_id is None:
            text = segment.text.lstrip(WHITE_SPACE) if strips else segment.text
            if text:  # a mark within white space doesn't end what is taken
                strips = False
                kept.append(replace(segment, text=text))
            continue
        if segment.special_id in tokenizer.strips_left:
            while kept and kept[-1].special_id is None:
                last = kept.pop()
                if text := last.text.rstrip(WHITE_SPACE):
                    kept.append(replace(last, text=text))
                    break
        kept.append(segment)
        strips = segment.special_id in tokenizer.strips_right
    return kept


def _joined(tokenizer: Tokenizer, segments: list[_Segment]) -> list[list[_Segment]]:
    """Runs of segments that are encoded as one: each alone, but for text on both sides of a mark where that changes it."""
    runs: list[list[_Segment]] = []
    for segment in segments:
        is_text = tokenizer.marks_beginnings and segment.special_id is None
        if is_text and runs and runs[-1][0].special_id is None:
            runs[-1].append(segment)
        else:
            runs.append([segment])
    return runs


def _learnt_at(run: Sequence[_Segment], starts: Sequence[int]) -> list[bool]:
    """Whether each token that starts at these characters of the run's text begins within what is learnt."""
    ends = list(accumulate(len(segment.text) for segment in run))
    return [run[min(bisect_right(ends, start), len(run) - 1)].is_learnt for start in starts]


def _check(messages: Sequence[Message]) -> None:
    """Raise UserError for a message that is none: templates fail in their own ways on those."""
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise UserError(f"messages[{number}]", message, problem="is no object with role and content")
        for key in ("role", "content"):
            if key not in message:
                raise UserError(f"messages[{number}].{key}", problem="is missing")
        for key, value in message.items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise UserError(f"messages[{number}].{key}", value, problem="is no text")


@lru_cache(maxsize=8)
def _look_alike(specials: tuple[str, ...]) -> re.Pattern[str]:
    """The first character of whatever reads like a special token, or like the beginning of one at the text's end."""
    if not specials:
        return re.compile(r"(?!)")
    firsts = "".join(re.escape(first) for first in sorted({special[0] for special in specials}))
    wholes = "|".join(map(re.escape, specials))
    starts = "|".join(sorted({re.escape(special[:end]) for special in specials for end in range(1, len(special))}))
    # Look-aheads, so that look-alikes which overlap each lose their own first character.
    return re.compile(rf"(?=[{firsts}])(?=(?:{wholes})|(?:{starts})\s*\Z).", re.DOTALL)


def _unused_characters(text: str, count: int) -> list[str]:
    """Private-use characters that `text` does not contain. Plane 15 has 65,534 of them; nobody uses all."""
    used = set(text)
    free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in used)
    return [next(free) for _ in range(count)]
