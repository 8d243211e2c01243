"""A JSON file of many records, read one record at a time: it may be larger than memory, and may break off anywhere."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from fox.data.quarantine import MAX_RECORD_BYTES, BadRecord

CHUNK_BYTES = 2**20
NO_END = "JSON breaks off before its end"


def members(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """A list gives ("record 17", value), an object of records ("key NAME", value). Raises BadRecord at a break."""
    text = _Window(stream)
    opening = text.take()
    if opening not in ("[", "{"):
        raise BadRecord("JSON is neither a list nor an object of records", text.rest())
    closing = "]" if opening == "[" else "}"
    number = 0
    if text.peek() == closing:
        text.take()
    else:
        while True:
            number += 1
            yield (_key(text) if opening == "{" else f"record {number}"), text.value()
            following = text.take()
            if following == closing:
                break
            if following != ",":
                raise BadRecord("not JSON: no comma between records" if following else NO_END, text.rest())
    if text.peek():
        raise BadRecord("goes on after the end of its JSON; is it JSON Lines? Then name it .jsonl", text.rest())


def not_json(error: ValueError | RecursionError, evidence: object) -> BadRecord:
    """What is wrong with a record that json refuses: the kind of mistake only, for reasons are counted."""
    if isinstance(error, RecursionError):
        return BadRecord("JSON is nested too deep", evidence)
    if isinstance(error, json.JSONDecodeError):
        return BadRecord(f"not JSON: {error.msg.partition(':')[0].strip()}", evidence)
    return BadRecord("a number in JSON is too long", evidence)  # Python refuses whole numbers of over 4,300 digits


def _key(text: _Window) -> str:
    key = text.value()
    if not isinstance(key, str):
        raise BadRecord("not JSON: a key is not a string", text.rest())
    if text.take() != ":":
        raise BadRecord("not JSON: no colon behind a key", text.rest())
    return f"key {key[:80]}"


class _Window:
    """The part of the text that is being looked at."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = json.JSONDecoder()
        self.text = ""
        self.at = 0
        self.ended = False
        self.broken: Exception | None = None  # raised once all that came before it is used up

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing too
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._read_on()

    def take(self) -> str:
        character = self.peek()
        self.at += len(character)
        return character

    def value(self) -> Any:
        """The next JSON value. It is parsed anew whenever more text was needed; each time twice as much comes in."""
        self.peek()
        while True:
            refused: ValueError | RecursionError | None = None
            try:
                value, end = self.json.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:  # at the end of the window, 12 may be the beginning of 123
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                refused = error
            except (ValueError, RecursionError) as error:
                raise not_json(error, self.rest()) from None
            if self.ended:
                raise (not_json(refused, self.rest()) if refused and self.at < len(self.text) else BadRecord(NO_END))
            if len(self.text) - self.at > MAX_RECORD_BYTES:
                raise BadRecord(f"no record ends within {MAX_RECORD_BYTES // 2**20} MiB", self.rest())
            self._read_on()

    def rest(self) -> str:
        return self.text[max(0, self.at - 20) : self.at + 1000]

    def _read_on(self) -> None:
        if self.broken:
            raise self.broken
        self.text = self.text[self.at :]
        self.at = 0
        wanted = max(CHUNK_BYTES, min(len(self.text), MAX_RECORD_BYTES - len(self.text)))
        pieces = []
        while wanted > 0 and not self.ended and not self.broken:
            try:
                # read1, for read would lose what a damaged gzip file gave before it broke
                content = self.stream.read1(min(wanted, CHUNK_BYTES))  # type: ignore[attr-defined]
                self.ended = not content
                wanted -= len(content)
                pieces.append(self.decoder.decode(content, final=self.ended))
            except UnicodeDecodeError as error:
                pieces.append(error.object[: error.start].decode())
                self.broken, self.ended = error, False
            except (OSError, EOFError, zlib.error) as error:
                self.broken = error
        self.text += "".join(pieces)


_SPACE = re.compile(r"[ \t\n\r]*")
