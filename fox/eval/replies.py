"""How a tuned model's replies read: do they end, and are their words words?"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fox.engine.conversation import Conversation
from fox.engine.sampler import Sampling
from fox.formats.token_shards import Shard
from fox.model import Transformer
from fox.tokenizer import Tokenizer

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class Reply:
    """What a model answered, and whether it came to an end by itself."""

    prompt: str
    text: str
    ended: bool


def reply_to(model: Transformer, tokenizer: Tokenizer, prompt: str, sampling: Sampling, max_tokens: int) -> Reply:
    """The model's answer to an opening line."""
    conversation = Conversation(model, tokenizer)
    text = "".join(conversation.reply(prompt, sampling, max_tokens))
    return Reply(prompt, text, conversation.ended)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; digits and signs are none."""
    return _WORD.findall(text.lower())


def vocabulary_of(tokenizer: Tokenizer, shards: Iterable[Shard]) -> set[str]:
    """Every word of some shards' text."""
    words: set[str] = set()
    for shard in shards:
        for tokens, _ in shard.documents():
            words.update(words_of(tokenizer.decode(tokens.tolist())))
    return words


def opening_lines(tokenizer: Tokenizer, shard: Shard, count: int) -> list[str]:
    """What was said just before the first reply in each of the first `count` chats of a shard, without the role's mark."""
    lines: list[str] = []
    for tokens, is_learnt in shard.documents():
        if len(lines) == count:
            break
        assert is_learnt is not None
        before = tokens[: int(is_learnt.argmax())]
        turns = np.split(before, np.flatnonzero(before == tokenizer.eos_id) + 1)  # the last is the reply's mark
        opening = tokenizer.decode(turns[-2 if len(turns) > 1 else -1].tolist()).strip()
        if opening:
            lines.append(opening)
    return lines
