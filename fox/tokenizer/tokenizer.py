"""Text to token ids and back. Special tokens come from their ids alone: no text, however written, turns into one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers.decoders import DecodeStream

from fox.artifacts import write_atomically, write_json
from fox.errors import UserError
from fox.formats.untrusted import read_untrusted, read_untrusted_json
from fox.tokenizer.backend import (
    add_named_tokens,
    check_special_tokens,
    panics_as_errors,
    read_backend,
    rebuilt_otherwise,
)
from fox.tokenizer.word_table import Ids, WordTable

_NO_UTF8 = re.compile("([\udc80-\udcff])")
_FALLBACK = re.compile("<0x[0-9A-F]{2}>")
_LARGEST_CONFIG = 16 << 20

# What would have transformers read a tokenizer otherwise than tokenizer.json has it, which says all that is to be said.
_NOT_SAVED = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "added_tokens_decoder",
    "auto_map",
    "fix_mistral_regex",
    "from_slow",
    "legacy",
    "sp_model_kwargs",
    "split_special_tokens",
)


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
        # By its decoder too: SmolLM2's vocabulary is byte-level and lacks the letters of 21 bytes that never occurred.
        self.is_byte_level = _has_step(backend.decoder, "ByteLevel") or all(
            backend.token_to_id(letter) is not None for letter in _BYTE_OF_LETTER
        )
        added = backend.get_added_tokens_decoder().items()
        self.special_ids: dict[str, int] = {
            token.content: token_id for token_id, token in added if token.special and token.content
        }
        # The special tokens that take the white space before or behind them, where a chat is cut at them.
        self.strips_left = {token_id for token_id, token in added if token.special and token.lstrip}
        self.strips_right = {token_id for token_id, token in added if token.special and token.rstrip}
        self.warnings: list[str] = []
        self._added_text: dict[int, str] = {token_id: token.content for token_id, token in added if not token.special}
        # What ends a reply: eos, and what else the model's loader knows of (a turn's end that is not the text's).
        self.stop_ids: set[int] = set() if self.eos_id is None else {self.eos_id}

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """The tokenizer of a model directory. Raises UserError where it is missing or unusable."""
        try:
            backend = read_backend(folder / "tokenizer.json")
            config = _config(folder)
            template = folder / "chat_template.jinja"  # where newer releases of transformers put it
            if template.exists():
                config["chat_template"] = read_untrusted(template, _LARGEST_CONFIG).decode("utf-8")
        except Exception as error:  # tokenizers raises bare Exception for all that is wrong with a file
            if isinstance(error, FileNotFoundError) and (folder / "tokenizer.json").exists():
                missing = Path(error.filename or "tokenizer.json").name
                raise UserError("tokenizer", str(folder), problem=f"has no {missing}") from None
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            mend = "Name a folder with a tokenizer.json."
            if not (folder / "tokenizer.json").exists():
                reason = "there is no tokenizer.json"
                if (old := _older_files(folder)) is not None:
                    reason += f", only {old}"
                    mend = "Save it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
            raise UserError("tokenizer", str(folder), problem=f"can't be read: {reason}", mend=mend) from None
        place = str(folder / "tokenizer_config.json")
        warnings = add_named_tokens(backend, config, place)
        warnings += check_special_tokens(backend, str(folder)) + rebuilt_otherwise(backend, config)
        tokenizer = cls(backend, config)
        tokenizer.warnings = warnings
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` (with the chat template) into a folder.

        It is of the class that reads tokenizer.json as it is; some others rebuild it in their own way.
        """
        write_atomically(folder / "tokenizer.json", self.backend.to_str(pretty=True))
        kept = {key: value for key, value in self.config.items() if key not in _NOT_SAVED}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(kept.get(key), list):  # one that is no token would become one
                kept[key] = [token for token in kept[key] if self.backend.token_to_id(_name(token) or "") is not None]
        write_json(folder / "tokenizer_config.json", {**kept, "tokenizer_class": "PreTrainedTokenizerFast"})

    def encode(self, text: str | bytes, at_start: bool = True) -> list[int]:
        """Token ids of plain text, without special tokens. Bytes that are no UTF-8 become byte tokens, so any bytes come back.

        Where tokens come before the text, say `at_start=False`: some tokenizers put a space in front of a text's first word alone.
        """
        if isinstance(text, str):
            return self.encode_batch([text], at_start)[0]
        ids: list[int] = []
        for piece in _NO_UTF8.split(text.decode("utf-8", "surrogateescape")):
            if _NO_UTF8.match(piece):
                ids.append(self._byte_id(ord(piece) - 0xDC00))
            elif piece:
                ids += self.encode(piece, at_start and not ids)
        return ids

    def encode_batch(self, texts: Sequence[str], at_start: bool = True) -> list[list[int]]:
        """`encode` for many texts at once, on all cores. Raises UserError for what is no text, or not for this tokenizer."""
        return [encoding.ids for encoding in self._encodings(texts, at_start, with_places=False)]

    def encode_arrays(self, texts: Sequence[str]) -> list[Ids]:
        """`encode_batch` for much text, an array of uint32 each: the same ids in less time. It remembers the words that it has met."""
        if self._word_table is None:
            return [np.array(ids, dtype=np.uint32) for ids in self.encode_batch(texts)]
        with _encoding():
            return self._word_table.encode(texts)

    def encode_batch_with_starts(
        self, texts: Sequence[str], at_start: bool = True
    ) -> list[tuple[list[int], list[int]]]:
        """`encode_batch`, with the character at which each token starts."""
        encodings = self._encodings(texts, at_start, with_places=True)
        return [(encoding.ids, [start for start, _ in encoding.offsets]) for encoding in encodings]

    def _encodings(self, texts: Sequence[str], at_start: bool, with_places: bool) -> list[tokenizers.Encoding]:
        backend = self.backend if at_start else self._backend_after_start
        encode_batch = backend.encode_batch if with_places else backend.encode_batch_fast
        with _encoding():
            return encode_batch(list(texts), add_special_tokens=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens left out; bytes that are no UTF-8 show as U+FFFD."""
        with _decoding():
            return self.backend.decode(list(ids), skip_special_tokens=True)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of token ids, special tokens left out."""
        special = set(self.special_ids.values())
        return b"".join(self._bytes(token_id) for token_id in ids if token_id not in special)

    def stream(self) -> _Stream:
        """A decoder that takes one id at a time and gives text once it is whole characters."""
        return _Stream(self.backend)

    @property
    def adds_bos(self) -> bool:
        """Whether this tokenizer, asked for special tokens, puts bos in front of a text. `encode` never does."""
        return self.bos_id is not None and self._frame[0] == [self.bos_id]

    @property
    def adds_eos(self) -> bool:
        """Whether this tokenizer, asked for special tokens, puts eos behind a text. `encode` never does."""
        return self.eos_id is not None and self._frame[1] == [self.eos_id]

    @cached_property
    def marks_beginnings(self) -> bool:
        """Whether a text's beginning is encoded in its own way, with a space in front, so that to cut text is to change it."""
        stated = [
            part.__getstate__() for part in (self.backend.normalizer, self.backend.pre_tokenizer) if part is not None
        ]
        marks = (
            b'"type":"Prepend"',
            b'"prepend_scheme":"first"',
            b'"prepend_scheme":"always"',
            b'"add_prefix_space":true',
        )
        return any(mark in part for part in stated for mark in marks)

    @cached_property
    def _word_table(self) -> WordTable | None:
        return WordTable.of(self.backend)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """What comes before and behind a text with special tokens. Of an empty text alone it can't be told, where bos is eos."""
        plain, framed = (self.backend.encode("a", add_special_tokens=special).ids for special in (False, True))
        for start in range(len(framed) - len(plain) + 1):
            if framed[start : start + len(plain)] == plain:
                return framed[:start], framed[start + len(plain) :]
        return [], []

    @cached_property
    def _backend_after_start(self) -> tokenizers.Tokenizer:
        """The backend for text that does not begin a document: without the space in front that only its first word gets.

        Newer conversions of Llama-2's tokenizer have it so (Metaspace, prepend_scheme first). Where every piece of text gets
        the space, or none, it is the backend itself.
        """
        if not _has_step(self.backend.pre_tokenizer, "Metaspace"):
            return self.backend
        stated = json.loads(self.backend.to_str())
        cutter = stated["pre_tokenizer"]
        steps = cutter["pretokenizers"] if cutter["type"] == "Sequence" else [cutter]
        for step in steps:
            if step["type"] == "Metaspace" and step["prepend_scheme"] == "first":
                step["prepend_scheme"] = "never"
        backend = tokenizers.Tokenizer.from_str(json.dumps(stated))
        backend.encode_special_tokens = True
        return backend

    def _bytes(self, token_id: int) -> bytes:
        if (text := self._added_text.get(token_id)) is not None:
            return text.encode()
        token = self.backend.id_to_token(token_id) or ""
        if self.is_byte_level:
            if all(letter in _BYTE_OF_LETTER for letter in token):
                return bytes(_BYTE_OF_LETTER[letter] for letter in token)
            return token.encode()  # no text becomes this one; it shows as it is written
        return bytes([int(token[3:5], 16)]) if _FALLBACK.fullmatch(token) else token.replace("▁", " ").encode()

    def _byte_id(self, byte: int) -> int:
        """The token of a single byte. Raises UserError where it has none."""
        token_id = self.backend.token_to_id(_LETTER_OF_BYTE[byte] if self.is_byte_level else f"<0x{byte:02X}>")
        if token_id is None:
            raise UserError(
                "tokenizer",
                problem=f"has no token for the byte 0x{byte:02X}, so there is text that it can't write",
                mend="Use one that is byte-level or falls back to bytes, as Llama's, Gemma's and Fox's own are.",
            )
        return token_id

    def _named(self, key: str) -> int | None:
        return self.backend.token_to_id(self.token_names[key]) if key in self.token_names else None


def _name(token: object) -> str | None:
    """A special token's name, written as it is or as an object with its `content`."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None


def _has_step(part: object, kind: str) -> bool:
    """Whether a decoder or pre-tokenizer is of this kind, or a sequence that has one."""
    return part is not None and f'"type":"{kind}"'.encode() in part.__getstate__()  # type: ignore[operator]


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the special tokens that only special_tokens_map.json names; older folders may have it alone."""
    path, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config: dict[str, Any] = {}
    if older.exists():
        config |= {key: token for key, token in _object(older).items() if key.endswith("_token")}
    if path.exists() or not older.exists():
        config |= _object(path)
    return config


def _object(path: Path) -> dict[str, Any]:
    content = read_untrusted_json(path, _LARGEST_CONFIG)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return content


def _older_files(folder: Path) -> str | None:
    """The files of a tokenizer from before tokenizer.json, where there are some."""
    if (folder / "tokenizer.model").exists():
        return "tokenizer.model"
    pair = ("vocab.json", "merges.txt")
    return " and ".join(pair) if all((folder / name).exists() for name in pair) else None


@contextlib.contextmanager
def _encoding() -> Iterator[None]:
    try:
        with panics_as_errors():
            yield
    except TypeError:  # a str that holds half a character, as Python spells an argument's bytes that are no UTF-8
        raise UserError("text", problem="is not UTF-8 text") from None
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError("tokenizer", problem=f"can't encode this text: {error}") from None


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    try:
        with panics_as_errors():
            yield
    except ValueError as error:
        raise UserError("tokenizer", problem=f"can't turn these tokens into text: {error}") from None


class _Stream:
    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        with _decoding():
            return self._stream.step(self._backend, token_id) or ""


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary (GPT-2's table): itself where it prints, else U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


_LETTER_OF_BYTE = _byte_letters()
_BYTE_OF_LETTER = {letter: byte for byte, letter in _LETTER_OF_BYTE.items()}
