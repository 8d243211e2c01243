"""`fox chat`: a conversation on a terminal, from a pipe, or of one message."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from fox.engine.conversation import Conversation
from fox.engine.sampler import Sampling
from fox.errors import UserError
from fox.runs.models import find_model, open_named


def chat_with(name: str, prompt: str | None, system: str | None, sampling: Sampling, max_tokens: int) -> None:
    """Answer `prompt`, or each line of standard input until it ends. Replies go to standard output, all else to standard error."""
    stored = open_named(find_model(name))
    conversation = Conversation(stored.load(), stored.tokenizer, system)
    if prompt is not None:
        _answer(conversation, prompt, sampling, max_tokens)
        return
    person = sys.stdin.isatty()
    if person:
        _aside(f"Chatting with {name}. Ctrl-C stops a reply, Ctrl-D ends.")
    for line in _lines(person):
        forgotten = conversation.forgotten_turns
        try:
            _answer(conversation, line, sampling, max_tokens)
        except UserError as error:
            if not person:
                raise
            _aside(str(error))
        if conversation.forgotten_turns > forgotten:
            _aside("(The oldest turns were left out: the conversation is longer than the model reads.)")


def _answer(conversation: Conversation, line: str, sampling: Sampling, max_tokens: int) -> None:
    try:
        for piece in conversation.reply(line, sampling, max_tokens):
            sys.stdout.write(_printable(piece) if sys.stdout.isatty() else piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        _aside(" (stopped)")
    else:
        if not conversation.ended:
            _aside(f" (cut after {max_tokens} tokens or at the end of the context)")
    sys.stdout.write("\n")
    sys.stdout.flush()


def _lines(person: bool) -> Iterator[str]:
    """What is said, without empty lines; a person is asked for it."""
    while True:
        try:
            if person:
                sys.stderr.write("> ")
                sys.stderr.flush()
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            _aside(" (Ctrl-D ends)")
            continue
        except UnicodeDecodeError as error:
            raise UserError("standard input", problem=f"is not UTF-8 text ({error.reason})") from None
        if not line:
            return
        if line.strip():
            yield line.strip()


def _printable(text: str) -> str:
    """What may reach a terminal: a model can write the sequences that move its cursor or change its title, too."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _aside(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
