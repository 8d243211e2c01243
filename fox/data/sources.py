"""The documents of a source, one by one: the beginning of every run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fox.data.conversations import conversation_of
from fox.data.document import Document, about_row
from fox.data.files import ARCHIVES, PAGES, SourceFile, files_of
from fox.data.quarantine import MAX_RECORD_BYTES, TOO_LONG, BadRecord, Tally, usable_text
from fox.data.rows import require_readers, rows_of
from fox.data.web.warc import NotAPage
from fox.recipe.schema import Source


def read_source(name: str, source: Source, tally: Tally) -> Iterator[Document]:
    """The usable documents of a source, always in the same order; `tally` counts them and all that is set aside.

    A source without a readable file raises UserError at once. One with more bad records than
    `source.max_bad_fraction` raises UserError once it is read to its end: see `Tally.check`.
    """
    files = files_of(name, source, tally)
    require_readers(name, files)
    return _checked(read_files(name, source, files, tally), tally)


def _checked(documents: Iterator[Document], tally: Tally) -> Iterator[Document]:
    yield from documents
    tally.check()


def read_files(name: str, source: Source, files: Iterable[SourceFile], tally: Tally) -> Iterator[Document]:
    """The usable documents of some of a source's files. Whether too many records are bad is for who has read all of them to say."""
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


def _document(name: str, source: Source, place: str, value: object, tally: Tally) -> Document:
    if isinstance(value, BadRecord):
        raise value
    if not isinstance(value, dict):
        raise BadRecord("record is not an object", value)
    if source.kind == "chat":
        if "messages" not in value:
            raise BadRecord('no "messages"', value)
        chat = conversation_of(value["messages"])
        document = Document(name, place, messages=chat.messages, about=about_row(value))
    else:
        if source.text_field not in value:
            other = ', but "messages": set kind = "chat"' if "messages" in value else ""
            raise BadRecord(f'no "{source.text_field}"{other}', value)
        text = usable_text(value[source.text_field], source.text_field)
        document = Document(name, place, text=text, about=about_row(value))
    if document.num_bytes > MAX_RECORD_BYTES:
        raise BadRecord(TOO_LONG, value)
    if source.kind == "chat":
        tally.left_out.update({"turn behind the last answer": chat.unanswered_turns, "blank text": chat.blank_texts})
    return document
