"""The documents of a source, one by one: the beginning of every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fox.artifacts import sha256_of_json
from fox.data.conversations import Message, conversation_of
from fox.data.files import ARCHIVES, PAGES, SourceFile, files_of
from fox.data.quarantine import MAX_RECORD_BYTES, TOO_LONG, BadRecord, Tally, usable_text
from fox.data.rows import require_readers, rows_of
from fox.data.web.warc import NotAPage
from fox.recipe.schema import Source

__all__ = ["Document", "Tally", "read_source"]


@dataclass(frozen=True)
class Document:
    """One text or one conversation: of `text` and `messages` the other is None."""

    source: str
    place: str
    """`FILE`, `FILE:LINE`, `FILE row 17`, `FILE record 17` or `FILE key ID`; FILE is named from source.path on."""
    text: str | None = None
    messages: tuple[Message, ...] | None = None

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the content alone, so that the same document counts as the same wherever it was found."""
        if self.text is not None:
            return hashlib.sha256(self.text.encode()).digest()
        return bytes.fromhex(sha256_of_json(self.messages))

    @property
    def num_bytes(self) -> int:
        """Bytes of the content in UTF-8; of a conversation, without its roles."""
        contents = [self.text] if self.text is not None else [message["content"] for message in self.messages or ()]
        return sum(len(content.encode()) for content in contents)


def read_source(name: str, source: Source, tally: Tally) -> Iterator[Document]:
    """The usable documents of a source, always in the same order; `tally` counts them and all that is set aside.

    A source without a readable file raises UserError at once. One with more bad records than
    `source.max_bad_fraction` raises UserError once it is read to its end: see `Tally.check`.
    """
    files = files_of(name, source, tally)
    require_readers(name, files)
    return _documents(name, source, files, tally)


def _documents(name: str, source: Source, files: list[SourceFile], tally: Tally) -> Iterator[Document]:
    field = "messages" if source.kind == "chat" else source.text_field
    for file in files:
        tally.files += 1
        if source.kind == "chat" and file.format in (*PAGES, *ARCHIVES):
            tally.refuse(file.label, "a page of text among chats", whole_file=True)
            continue
        place = file.label
        try:
            for place, value in rows_of(file, field):
                if isinstance(value, NotAPage):
                    tally.left_out[value.reason] += 1
                    continue
                try:
                    document = _document(name, source, place, value, tally)
                except BadRecord as bad:
                    tally.refuse(place, bad.reason, bad.evidence, records=bad.records)
                else:
                    tally.good += 1
                    yield document
        except BadRecord as bad:
            after = "" if place == file.label else f"after {place}"
            tally.refuse(after or place, bad.reason, bad.evidence, records=bad.records, whole_file=True)
    tally.check()


def _document(name: str, source: Source, place: str, value: object, tally: Tally) -> Document:
    if isinstance(value, BadRecord):
        raise value
    if not isinstance(value, dict):
        raise BadRecord("record is not an object", value)
    if source.kind == "chat":
        if "messages" not in value:
            raise BadRecord('no "messages"', value)
        chat = conversation_of(value["messages"])
        document = Document(name, place, messages=chat.messages)
    else:
        if source.text_field not in value:
            other = ', but "messages": set kind = "chat"' if "messages" in value else ""
            raise BadRecord(f'no "{source.text_field}"{other}', value)
        document = Document(name, place, text=usable_text(value[source.text_field], source.text_field))
    if document.num_bytes > MAX_RECORD_BYTES:
        raise BadRecord(TOO_LONG, value)
    if source.kind == "chat":
        tally.left_out.update({"turn behind the last answer": chat.unanswered_turns, "blank text": chat.blank_texts})
    return document
