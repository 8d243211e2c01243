"""A record with `messages` becomes a conversation in one shape: a tuple of {"role", "content"}, ending in an answer."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from fox.data.quarantine import BadRecord, usable_text

ROLES = ("system", "user", "assistant")

Message = dict[str, str]


class Conversation(NamedTuple):
    messages: tuple[Message, ...]
    unanswered_turns: int
    """Cut off behind the last answer: nothing is learnt from them."""
    blank_texts: int
    """Sent with nothing in them, and left out."""


def conversation_of(messages: object) -> Conversation:
    """Read either shape: [{role, content}, ...], or a list of turns, each [{text, sender}, ...]. Raises BadRecord."""
    if not isinstance(messages, list):
        raise BadRecord("messages is not a list", messages)
    if not messages:
        raise BadRecord("messages is empty")
    turns, blank_texts = _from_turns(messages) if isinstance(messages[0], list) else (_from_roles(messages), 0)
    answers = [number for number, turn in enumerate(turns, 1) if turn["role"] == "assistant"]
    if not answers:
        raise BadRecord("no assistant turn", messages)
    return Conversation(tuple(turns[: answers[-1]]), len(turns) - answers[-1], blank_texts)


def _from_roles(messages: list[object]) -> list[Message]:
    turns = []
    for message in messages:
        if not isinstance(message, dict):
            raise BadRecord("a message is not an object with role and content", message)
        role = message.get("role")
        if role not in ROLES:
            raise BadRecord(f"a role is none of {', '.join(ROLES)}", message)
        turns.append({"role": role, "content": usable_text(message.get("content"), "a message's content")})
    return turns


def _from_turns(messages: list[object]) -> tuple[list[Message], int]:
    """The shape of chitchat-dataset. Who speaks first is the user; what one sends in a row is one message."""
    texts: list[tuple[str, str]] = []
    blank_texts = 0
    for turn in messages:
        if not isinstance(turn, list):
            raise BadRecord("a turn is not a list of {text, sender}", turn)
        for sent in turn:
            if not isinstance(sent, dict) or not isinstance(sent.get("sender"), str):
                raise BadRecord("a turn has something without a sender", sent)
            text = sent.get("text")
            if isinstance(text, str) and not text.strip():
                blank_texts += 1
            else:
                texts.append((sent["sender"], usable_text(text, "a turn's text")))
    senders = list(dict.fromkeys(sender for sender, _ in texts))
    if len(senders) > 2:
        raise BadRecord("more than two senders", messages)
    role_of = dict(zip(senders, ("user", "assistant"), strict=False))
    return [
        {"role": role_of[sender], "content": "\n".join(text for _, text in run)}
        for sender, run in groupby(texts, key=itemgetter(0))
    ], blank_texts
