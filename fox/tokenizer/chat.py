"""Conversations to token ids, through the one template that is stored with the tokenizer.

What people write must never turn into a special token, whatever a template does with it. So before rendering, every
special token's text inside a message is broken by a guard character that nobody used; the rendered text is cut at the
special tokens that remain, which only the template can have written; then the guards are taken out again.
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
    written = template + "".join(message["content"] for message in messages)
    guard, opening, closing = _unused_characters(written, 3)
    specials = sorted(tokenizer.special_ids, key=len, reverse=True)
    guarded = [
        {key: _guarded(value, specials, guard) for key, value in message.items()} for message in messages
    ]  # fmt: skip
    try:
        rendered = _compiled(template).render(
            messages=guarded,
            add_generation_prompt=add_generation_prompt,
            generation_marks=(opening, closing),
            **{
                key: value
                for key, value in tokenizer.config.items()
                if key.endswith("_token") and isinstance(value, str)
            },
        )
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError("tokenizer.chat_template", problem=f"can't render these messages: {error}") from None

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
            segments.append(_Segment(piece.replace(guard, ""), None, is_learnt))
    return segments


def _guarded(text: str, specials: Sequence[str], guard: str) -> str:
    """`text` with a guard after the first character of whatever reads like a special token."""
    if not specials:
        return text
    # A look-ahead finds look-alikes that overlap, too: each of them is broken at its own first character.
    return re.sub(f"(?=({'|'.join(map(re.escape, specials))}))(.)", rf"\2{guard}", text, flags=re.DOTALL)


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
    sandbox.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return sandbox.from_string(template)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
