"""A conversation with a model: it remembers the turns, and computes of each only what is new."""

from __future__ import annotations

from collections.abc import Iterator

from fox.engine.generate import generate
from fox.engine.kv_cache import KVCache
from fox.engine.sampler import Sampling
from fox.errors import UserError
from fox.model import Transformer
from fox.tokenizer import Tokenizer
from fox.tokenizer.chat import Message, encode_chat

_LEAST_REPLY_TOKENS = 16


class Conversation:
    """Turns with one model. `forgotten_turns` counts the old ones that had to make room; `ended` says whether the last reply did."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, system: str | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        self.forgotten_turns = 0
        self.ended = True
        weight = next(model.parameters())
        self._cache = KVCache(model.config, model.config.max_position_embeddings, weight.dtype, weight.device)
        self._seen: list[int] = []

    def reply(self, text: str, sampling: Sampling, max_tokens: int) -> Iterator[str]:
        """The model's answer to `text`, in pieces. What has been said stays said when the caller stops early.

        Raises UserError where `text` alone does not fit the model's context.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            prompt = self._prompt(min(max_tokens, _LEAST_REPLY_TOKENS))
        except UserError:
            self.messages.pop()
            raise
        known = _common_prefix(self._seen[: self._cache.num_tokens], prompt[:-1])
        self._cache.truncate(known)
        self._seen = list(prompt)
        stream = self.tokenizer.stream()
        stop = set() if self.tokenizer.eos_id is None else {self.tokenizer.eos_id}
        self.ended = False
        said: list[int] = []
        try:
            for token in generate(self.model, prompt[known:], self._cache, sampling, stop, max_tokens):
                self._seen.append(token)
                if token in stop:
                    self.ended = True
                    break
                said.append(token)
                piece = stream.step(token)
                if piece:
                    yield piece
        finally:
            self.messages.append({"role": "assistant", "content": self.tokenizer.decode(said)})

    def _prompt(self, room: int) -> list[int]:
        """The conversation's tokens, without as many of the oldest turns as must go so that `room` tokens are left for a reply."""
        context = self.model.config.max_position_embeddings
        first = 1 if self.messages[0]["role"] == "system" else 0
        while True:
            prompt = encode_chat(self.tokenizer, self.messages, add_generation_prompt=True).ids.tolist()
            if len(prompt) + room <= context:
                return prompt
            if len(self.messages) - first <= 2:
                raise UserError(
                    "message",
                    self.messages[-1]["content"],
                    problem=f"takes {len(prompt)} tokens with its conversation, and the model reads {context}",
                    mend="Say less.",
                )
            del self.messages[first : first + 2]
            self.forgotten_turns += 1


def _common_prefix(one: list[int], other: list[int]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
