"""The pages in a web archive: WARC 1.0 and 1.1 and Common Crawl's WET, plain, gzip or zstd, read record by record.

What a crawler stored is a stranger's: lengths lie, chunks are cut, compressed bodies are bombs, and one damaged record in a thousand is
usual. A bad record is told and reading goes on with the next one. Needs fastwarc, which is imported only here and only when it is used.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from fox.data.quarantine import MAX_RECORD_BYTES, TOO_LONG, BadRecord

MAX_BREAKS = 1000
"""After so many places in a row where a record begins and none can be read, the rest of an archive counts as damaged."""

_PLAIN = b"WARC/1."
_STARTS = {b"\x1f\x8b": b"\x1f\x8b\x08", b"\x28\xb5": b"\x28\xb5\x2f\xfd", b"WA": _PLAIN}
"""What each record begins with, by the archive's own first bytes: gzip, zstd, plain. Records are compressed one by one."""

_DICTIONARY = b"\x5d\x2a\x4d\x18"
"""What a .warc.zst begins with that brings a dictionary (IIPC, "Zstandard compression in WARC files")."""

_SEARCH_BYTES = 2**20

_HTML = ("text/html", "application/xhtml+xml")
_KINDS = ("application", "audio", "font", "image", "model", "text", "video")

_CHUNK = re.compile(rb"\s*[0-9A-Fa-f]{1,8}\s*(;[^\r\n]{0,1000})?\r?\n")


class Page(NamedTuple):
    """A response with text in it, or the text that a WET file has of one."""

    url: str
    date: str
    """When it was fetched, as ISO 8601."""
    content: bytes
    charset: str | None
    """As the HTTP header has it."""
    is_html: bool


class NotAPage(NamedTuple):
    """A response that holds no document; there is nothing wrong with it."""

    reason: str


def records_of(path: Path) -> Iterator[tuple[int, Page | NotAPage | BadRecord]]:
    """(number of the record from 1, what it is); requests, metadata and the like are counted and not yielded.

    Raises BadRecord where the file holds no archive, or no record can be found behind damage, and OSError where it can't be read at all.
    """
    from fastwarc.warc import ArchiveIterator

    with path.open("rb") as file:
        first = file.read(4)
        start = _STARTS.get(first[:2])
        if first == _DICTIONARY:
            raise BadRecord("is compressed with a dictionary of its own, which Fox does not read")
        if start is None:
            if file.seek(0, io.SEEK_END):
                raise BadRecord("is no web archive")
            return
        size = file.seek(0, io.SEEK_END)
        number, at, breaks = 0, 0, 0
        while breaks < MAX_BREAKS:
            file.seek(at)
            records = iter(ArchiveIterator(file, parse_http=False))
            damage, length, is_told = None, 0, breaks > 0
            while damage is None:
                try:
                    record = next(records)
                except StopIteration:
                    if not number or (_find(file, start, at + 1) < 0 if start != _PLAIN else at + length <= size):
                        return
                    damage = BadRecord("record is longer than what is left")  # what it has swallowed is looked for
                    break
                except (OSError, ValueError) as error:
                    damage = BadRecord("record is damaged", str(error))
                    number += not is_told
                    break
                at, number, length = record.stream_pos, number + 1, record.content_length
                value = _value(record)
                breaks, is_told = 0, isinstance(value, BadRecord) and value.reason == TOO_LONG
                if isinstance(value, _Broken):
                    damage = value
                elif value is not None:
                    yield number, value
            at = _find(file, start, at + 1)
            if not is_told:  # else it is the same damage still
                if at < 0:
                    raise damage  # the rest of the file is lost
                yield number, damage
            elif at < 0:
                return
            breaks += 1
    raise BadRecord(f"is damaged in {MAX_BREAKS} places in a row")


class _Broken(BadRecord):
    """A record of which it is not known where it ends."""


def _find(file: IO[bytes], start: bytes, at: int) -> int:
    """Where `start` stands next, from byte `at` on; -1 where it does not."""
    file.seek(at)
    window = file.read(_SEARCH_BYTES)
    while window:
        found = window.find(start)
        if found >= 0:
            return at + found
        more = file.read(_SEARCH_BYTES)
        if not more:
            return -1
        kept = window[-(len(start) - 1) :]
        at += len(window) - len(kept)
        window = kept + more
    return -1


def _value(record: Any) -> Page | NotAPage | BadRecord | None:
    try:
        return _read(record)
    except BadRecord as bad:
        return bad
    except (OSError, ValueError) as error:
        return _Broken("record is damaged", str(error))


def _read(record: Any) -> Page | NotAPage | None:
    """What a record is; None for those that are about others. Raises BadRecord, and OSError where its bytes can't be read."""
    from fastwarc.warc import WarcRecordType

    kind, headers = record.record_type, record.headers
    if kind in (WarcRecordType.warcinfo, WarcRecordType.request, WarcRecordType.metadata):
        return None
    if kind == WarcRecordType.unknown:
        raise BadRecord("record is of an unknown type", headers.get("WARC-Type"))
    if kind not in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.conversion):
        return NotAPage(str(kind))
    if headers.get("WARC-Segment-Number"):
        return NotAPage("part of a page")
    url = headers.get("WARC-Target-URI") or ""
    date = record.record_date.isoformat() if record.record_date else ""
    if kind == WarcRecordType.response:
        if not record.is_http:
            return NotAPage("not fetched by HTTP")
        record.parse_http(auto_decode="none")
        status = record.http_headers.status_code
        if status is None or not 100 <= status < 600:
            raise BadRecord("HTTP header is damaged", record.http_headers.status_line)
        if status != 200:
            return NotAPage(f"HTTP status {status}")
    media, charset = _media(headers.get("Content-Type") or "")
    coding, transfer = "", ""
    if kind == WarcRecordType.response:
        http = record.http_headers
        media, charset = _media(http.get("Content-Type") or "")
        coding, transfer = (http.get(name) or "" for name in ("Content-Encoding", "Transfer-Encoding"))
        media = _media(headers.get("WARC-Identified-Payload-Type") or "")[0] or media
    if media not in (*_HTML, "text/plain"):
        major = media.partition("/")[0]
        return NotAPage(f"{major} and no page" if major in _KINDS else "of unknown type")
    if media == "text/plain" and url.partition("?")[0].endswith("/robots.txt"):
        return NotAPage("robots.txt")
    if record.content_length > MAX_RECORD_BYTES:
        raise BadRecord(TOO_LONG)
    length = record.content_length
    block = record.reader.read(length)
    if len(block) < length:
        raise _Broken("record is cut short", block[:1000])
    if headers.get("WARC-Truncated"):
        raise BadRecord("record was cut short by the crawler", headers.get("WARC-Truncated"))
    if "chunked" in transfer.lower():
        block = _unchunked(block)
    content = _decompressed(block, coding.strip().lower())
    return Page(url, date, content, "utf-8" if kind == WarcRecordType.conversion else charset, media in _HTML)


def _media(value: str) -> tuple[str, str | None]:
    """`text/html` and the charset of a Content-Type."""
    media, _, parameters = value.partition(";")
    for parameter in parameters.split(";"):
        name, _, charset = parameter.partition("=")
        if name.strip().lower() == "charset":
            return media.strip().lower(), charset.strip().strip("\"'") or None
    return media.strip().lower(), None


def _unchunked(block: bytes) -> bytes:
    """The body that was sent in chunks. Crawlers may keep the header of one that they have put together already."""
    from fastwarc.stream_io import ChunkedReader

    if not _CHUNK.match(block):
        return block
    try:
        return bytes(ChunkedReader(io.BytesIO(block)).read())
    except OSError as error:
        raise BadRecord("chunks are damaged", str(error)) from None


def _decompressed(block: bytes, coding: str) -> bytes:
    """The body without its Content-Encoding (RFC 9110, 8.4). Crawlers may keep the header of one that they have decoded already."""
    if coding in ("", "identity") or block.lstrip()[:1] in (b"", b"<"):
        return block
    if coding in ("gzip", "x-gzip", "deflate"):
        if coding != "deflate" and not block.startswith(b"\x1f\x8b"):
            return block
        unpacked = bytearray()
        while block:  # gzip may have several members
            decompressor = zlib.decompressobj(
                47 if block[:1] in (b"\x1f", b"\x78") else -15
            )  # deflate comes with zlib's header and without
            try:
                unpacked += decompressor.decompress(block, MAX_RECORD_BYTES + 1 - len(unpacked))
            except zlib.error as error:
                raise BadRecord("compressed body is damaged", str(error)) from None
            if len(unpacked) > MAX_RECORD_BYTES:
                raise BadRecord(TOO_LONG)
            if not decompressor.eof:
                raise BadRecord("compressed body is cut short")
            block = decompressor.unused_data if decompressor.unused_data.startswith(b"\x1f\x8b") else b""
        return bytes(unpacked)
    if coding == "br":
        from fastwarc.stream_io import BrotliReader

        try:
            content = bytes(BrotliReader(io.BytesIO(block)).read(MAX_RECORD_BYTES + 1))
        except OSError as error:
            raise BadRecord("compressed body is damaged", str(error)) from None
        if len(content) > MAX_RECORD_BYTES:
            raise BadRecord(TOO_LONG)
        return content
    raise BadRecord("is in an unknown Content-Encoding", coding)
