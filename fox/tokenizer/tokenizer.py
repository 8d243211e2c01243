"""Text to token ids and back. Special tokens come from their ids alone: no text, however written, turns into one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

from fox.artifacts import write_atomically, write_json
from fox.errors import UserError

_NO_UTF8 = re.compile("([\udc80-\udcff])")
_FALLBACK = re.compile("<0x[0-9A-F]{2}>")


class Tokenizer:
    """A `tokenizer.json` with its special tokens and chat template.

    `bos_id`, `eos_id` and `pad_id` are looked up by the names in `tokenizer_config.json`, never taken from a model's config,
    which may disagree (the released Fox-1 config swaps bos and eos).
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        self.backend = backend
        self.config = config
        self.backend.encode_special_tokens = True  # text that looks like a special token stays text
        # One past the largest id, which is more than the number of entries where a vocabulary has gaps.
        self.vocab_size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.token_names = {key: name for key in config if key.endswith("_token") and (name := _name(config[key]))}
        self.bos_id, self.eos_id, self.pad_id = (self._named(f"{name}_token") for name in ("bos", "eos", "pad"))
        self._is_byte_level = all(backend.token_to_id(letter) is not None for letter in _BYTE_OF_LETTER)
        self.special_ids: dict[str, int] = {
            token.content: token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special and token.content
        }

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model directory. Raises UserError where it is missing or unusable."""
        try:
            backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError("tokenizer_config.json is no JSON object")
            template = folder / "chat_template.jinja"  # where newer releases of transformers put it
            if template.exists():
                config["chat_template"] = template.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UserError(
                "tokenizer", str(folder), problem=f"has no {Path(error.filename or 'tokenizer.json').name}"
            ) from None
        except Exception as error:  # tokenizers raises bare Exception for all that is wrong with a file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if not (folder / "tokenizer.json").exists():
                reason = "there is no tokenizer.json"
            raise UserError(
                "tokenizer",
                str(folder),
                problem=f"can't be read: {reason}",
                mend="Name a folder with a tokenizer.json.",
            ) from None
        return cls(backend, config)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template) into a folder."""
        write_atomically(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(folder / "tokenizer_config.json", self.config)

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of plain text, without special tokens. Bytes that are no UTF-8 become byte tokens, so any bytes come back."""
        if isinstance(text, str):
            return self.encode_batch([text])[0]
        ids: list[int] = []
        for piece in _NO_UTF8.split(text.decode("utf-8", "surrogateescape")):
            if _NO_UTF8.match(piece):
                ids.append(self._byte_ids[ord(piece) - 0xDC00])
            elif piece:
                ids += self.encode(piece)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts at once, on all cores. Raises UserError for what is no text, or not for this tokenizer."""
        try:
            return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except TypeError:  # a str that holds half a character, as Python spells an argument's bytes that are no UTF-8
            raise UserError("text", problem="is not UTF-8 text") from None
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError("tokenizer", problem=f"can't encode this text: {error}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens left out; bytes that are no UTF-8 show as U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of token ids, special tokens left out."""
        special = set(self.special_ids.values())
        tokens = (self.backend.id_to_token(token_id) or "" for token_id in ids if token_id not in special)
        if self._is_byte_level:
            return bytes(_BYTE_OF_LETTER[letter] for token in tokens for letter in token)
        return b"".join(
            bytes([int(token[3:5], 16)]) if _FALLBACK.fullmatch(token) else token.replace("▁", " ").encode()
            for token in tokens
        )

    def stream(self) -> _Stream:
        """A decoder that takes one id at a time and gives text once it is whole characters."""
        return _Stream(self.backend)

    @cached_property
    def _byte_ids(self) -> list[int]:
        """The token of each single byte. Raises UserError where one has none, since some text could not be written then."""
        names = [_LETTER_OF_BYTE[byte] if self._is_byte_level else f"<0x{byte:02X}>" for byte in range(256)]
        ids = [self.backend.token_to_id(name) for name in names]
        if None in ids:
            raise UserError(
                "tokenizer",
                problem="is neither byte-level nor does it fall back to bytes, so there is text that it can't write",
                mend="Use one that is, as Llama's, Gemma's and Fox's own are.",
            )
        return [token_id for token_id in ids if token_id is not None]

    def _named(self, key: str) -> int | None:
        return self.backend.token_to_id(self.token_names[key]) if key in self.token_names else None


def _name(token: object) -> str | None:
    """A special token's name, written as it is or as an object with its `content`."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None


class _Stream:
    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        return self._stream.step(self._backend, token_id) or ""


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table): itself where it prints, else U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


_LETTER_OF_BYTE = _byte_letters()
_BYTE_OF_LETTER = {letter: byte for byte, letter in _LETTER_OF_BYTE.items()}
