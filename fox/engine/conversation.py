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

        Raises UserError where `text` alone does not fit the model's context, or the chat template can't render it.
        """
        prompt = self._take_up({"role": "user", "content": text}, min(max_tokens, _LEAST_REPLY_TOKENS))
        known = _common_prefix(self._seen[: self._cache.num_tokens], prompt[:-1])
        self._cache.truncate(known)
        self._seen = list(prompt)
        stream = self.tokenizer.stream()
        stop = self.tokenizer.stop_ids
        self.ended = False
        said: list[int] = []
        shown = ""
        try:
            for token in generate(self.model, prompt[known:], self._cache, sampling, stop, max_tokens):
                self._seen.append(token)
                if token in stop:
                    self.ended = True
                    break
                said.append(token)
                piece = stream.step(token)
                shown += piece
                if piece:
                    yield piece
            rest = self.tokenizer.decode(said)[len(shown) :]  # held back for a character that was never finished
            if rest:
                yield rest
        finally:
            self.messages.append({"role": "assistant", "content": self.tokenizer.decode(said)})

    def _take_up(self, message: Message, room: int) -> list[int]:
        """Add `message`, leave out as many of the oldest turns as must go for `room` tokens of reply, and give all the tokens.

        Nothing is added and nothing left out where even the message alone takes too many.
        """
        context = self.model.config.max_position_embeddings
        messages = [*self.messages, message]
        first = 1 if messages[0]["role"] == "system" else 0
        forgotten_turns = 0
        while True:
            prompt = encode_chat(self.tokenizer, messages, add_generation_prompt=True).ids.tolist()
            if not prompt:
                raise UserError(
                    "tokenizer.chat_template",
                    self.tokenizer.config.get("chat_template"),
                    problem="makes nothing of this conversation, so there is nothing that the model could answer",
                    mend="Mend the model's chat_template.jinja, or name another model.",
                )
            if len(prompt) + room <= context:
                self.messages = messages
                self.forgotten_turns += forgotten_turns
                return prompt
            if len(messages) - first <= 2:
                raise UserError(
                    "message",
                    message["content"],
                    problem=f"takes {len(prompt)} tokens with its conversation, and the model reads {context}",
                    mend="Say less.",
                )
            del messages[first : first + 2]
            forgotten_turns += 1


def _common_prefix(one: list[int], other: list[int]) -> int:
    for place, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return place
    return min(len(one), len(other))
