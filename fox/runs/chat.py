"""`fox chat`: a conversation on a terminal, from a pipe, or of one message."""

from __future__ import annotations

import sys

from fox.engine.conversation import Conversation
from fox.engine.sampler import Sampling
from fox.errors import UserError
from fox.model.stored import StoredModel
from fox.runs.models import find_model, open_named


def chat_with(name: str, prompt: str | None, system: str | None, sampling: Sampling, max_tokens: int) -> None:
    """Answer `prompt`, or each line of standard input until it ends. Replies go to standard output, all else to standard error."""
    stored = open_named(find_model(name))
    _check_template(stored, name)
    conversation = Conversation(stored.load(), stored.tokenizer, system)
    if prompt is not None:
        _answer(conversation, prompt, sampling, max_tokens)
        return
    person = sys.stdin.isatty()
    if person:
        _aside(f"Chatting with {name}. Ctrl-C stops a reply, Ctrl-D ends.")
    note = ""
    while True:
        try:  # around all of it: whoever presses Ctrl-C twice may meet any line here, and wants to end none but the reply
            if note:
                said, note = note, ""
                _aside(said)
            line = _line(person)
            if line is None:
                return
            if line:
                _turn(conversation, line, sampling, max_tokens, person)
        except KeyboardInterrupt:
            if not person:
                raise
            note = " (Ctrl-D ends)"


def _check_template(stored: StoredModel, name: str) -> None:
    """Raise UserError for a model that can't be talked with, before its weights are read."""
    if not isinstance(stored.tokenizer.config.get("chat_template"), str | list):
        raise UserError(
            "MODEL", name,
            problem="has no chat template: it is a base model, which goes on with a text and does not answer",
            mend="Name a tuned one (their names often end in -Instruct or -it).",
        )  # fmt: skip


def _turn(conversation: Conversation, line: str, sampling: Sampling, max_tokens: int, person: bool) -> None:
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


def _line(person: bool) -> str | None:
    """What is said next, without the space around it; None at the end. A person is asked for it."""
    if person:
        sys.stderr.write("> ")
        sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise UserError("standard input", problem=f"is not UTF-8 text ({error.reason})") from None
    return line.strip() if line else None


def _printable(text: str) -> str:
    """What may reach a terminal: a model can write the sequences that move its cursor or change its title, too."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "\N{REPLACEMENT CHARACTER}" for sign in text)


def _aside(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
