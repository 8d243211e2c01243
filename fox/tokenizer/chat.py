"""Conversations to token ids, through the one template that is stored with the tokenizer.

What people write must never turn into a special token, also where a template trims it or puts two messages side by side.
So before rendering, whatever reads like a special token inside a message gets a stand-in for its first character, one that
nobody used; the rendered text is cut at the special tokens that remain, which only the template can have written; then the
characters come back.
The loss mask is the template's own `{% generation %}` spans, marked the same way.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import numpy as np
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fox.errors import UserError
from fox.formats.token_shards import Mask
from fox.tokenizer.tokenizer import Tokenizer

Message = dict[str, str]


@dataclass(frozen=True)
class EncodedChat:
    """`ids` (T,) of a whole conversation, and `is_learnt` (T,): True on what the assistant says, its end token included."""

    ids: np.ndarray
    is_learnt: Mask


def encode_chats(
    tokenizer: Tokenizer, chats: Sequence[Sequence[Message]], add_generation_prompt: bool = False
) -> list[EncodedChat]:
    """Each conversation as the model sees it. Raises UserError where the template is missing, broken or refuses the messages."""
    cut = [_segments(tokenizer, chat, add_generation_prompt) for chat in chats]
    plain = [segment.text for segments in cut for segment in segments if segment.special_id is None]
    plain_ids = iter(tokenizer.encode_batch(plain))
    encoded = []
    for segments in cut:
        ids: list[int] = []
        learnt: list[bool] = []
        for segment in segments:
            new = next(plain_ids) if segment.special_id is None else [segment.special_id]
            ids += new
            learnt += [segment.is_learnt] * len(new)
        encoded.append(EncodedChat(np.array(ids, dtype=np.int64), np.array(learnt, dtype=np.bool_)))
    return encoded


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False) -> EncodedChat:
    """`encode_chats` for one conversation."""
    return encode_chats(tokenizer, [messages], add_generation_prompt)[0]


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


def _segments(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> list[_Segment]:
    template = tokenizer.config.get("chat_template")
    if not isinstance(template, str):
        raise UserError(
            "tokenizer.chat_template", problem="this model has none", mend="Tune it first, or chat with a tuned model."
        )
    _check(messages)
    specials = tuple(sorted(tokenizer.special_ids, key=len, reverse=True))
    firsts = sorted({special[0] for special in specials})
    written = template + "".join(specials) + "".join(value for message in messages for value in message.values())
    opening, closing, *others = _unused_characters(written, 2 + len(firsts))
    stand_in = dict(zip(firsts, others, strict=True))
    as_written = {ord(other): first for first, other in stand_in.items()}
    guarded = [
        {key: _look_alike(specials).sub(lambda first: stand_in[first[0]], value) for key, value in message.items()}
        for message in messages
    ]
    try:
        rendered = _compiled(template).render(
            messages=guarded,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            generation_marks=(opening, closing),
            **tokenizer.token_names,
        )
    except Exception as error:  # a template is someone's program: whatever it raises is its own mistake
        reason = str(error) or type(error).__name__
        raise UserError("tokenizer.chat_template", problem=f"can't render these messages: {reason}") from None

    segments: list[_Segment] = []
    is_learnt = False
    marks = [*map(re.escape, specials), opening, closing]
    for piece in re.split(f"({'|'.join(marks)})", rendered):
        if piece == opening:
            is_learnt = True
        elif piece == closing:
            is_learnt = False
        elif piece in tokenizer.special_ids:
            segments.append(_Segment(piece, tokenizer.special_ids[piece], is_learnt))
        elif piece:
            segments.append(_Segment(piece.translate(as_written), None, is_learnt))
    return segments


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


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`: Hugging Face's marks around what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = nodes.Name("generation_marks", "load")
        opening, closing = (nodes.Output([nodes.Getitem(marks, nodes.Const(n), "load")]) for n in (0, 1))
        return nodes.Scope([opening, *body, closing], lineno=line)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    """A template ready to render, in a sandbox that can change nothing; with the functions that Hugging Face's templates may call."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    sandbox.globals["raise_exception"] = _raise_exception
    sandbox.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    sandbox.filters["tojson"] = _tojson
    return sandbox.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
