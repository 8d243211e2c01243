"""Web archives, whole, damaged and hostile. The real ones are read by tests/journey/test_web_archives.py."""

import gzip
import io
import random
import zlib
from pathlib import Path

import pytest

from fox.data.quarantine import MAX_RECORD_BYTES, BadRecord
from fox.data.web import warc
from fox.data.web.warc import NotAPage, Page, records_of

PAGE = "<html><body><p>Füchse</p></body></html>"


def record(
    block: bytes, kind: str = "response", media: str = "application/http;msgtype=response", **headers: str
) -> bytes:
    lines = {
        "WARC-Type": kind,
        "WARC-Record-ID": "<urn:uuid:12345678-1234-1234-1234-123456789012>",
        "WARC-Date": "2024-03-05T10:00:00Z",
        "WARC-Target-URI": "https://example.org/a",
        "Content-Type": media,
        "Content-Length": str(len(block)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return b"WARC/1.0\r\n" + head.encode() + b"\r\n" + block + b"\r\n\r\n"


def http(body: bytes, status: str = "200 OK", media: str = "text/html; charset=utf-8", **headers: str) -> bytes:
    lines = {"Content-Type": media, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return (
        f"HTTP/1.1 {status}\r\n".encode() + "".join(f"{n}: {v}\r\n" for n, v in lines.items()).encode() + b"\r\n" + body
    )


def read(tmp_path: Path, content: bytes, name: str = "a.warc") -> list[tuple[int, Page | NotAPage | BadRecord]]:
    (tmp_path / name).write_bytes(content)
    return list(records_of(tmp_path / name))


def read_one(tmp_path: Path, content: bytes) -> Page | NotAPage | BadRecord:
    [(_, value)] = read(tmp_path, content)
    return value


def kinds_of(found: list[tuple[int, object]]) -> list[type]:
    return [next(kind for kind in (Page, NotAPage, BadRecord) if isinstance(value, kind)) for _, value in found]


def zstd(content: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def brotli(content: bytes) -> bytes:
    from fastwarc.stream_io import BrotliWriter

    stream = io.BytesIO()
    writer = BrotliWriter(stream)
    writer.write(content)
    writer.close()
    return stream.getvalue()


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "compress", [bytes, lambda part: gzip.compress(part, mtime=0), zstd], ids=["plain", "gzip", "zstd"]
)
def test_pages_are_found_among_other_records(tmp_path, compress):
    parts = [
        record(b"software: x\r\n", "warcinfo", "application/warc-fields"),
        record(b"GET / HTTP/1.1\r\n\r\n", "request", "application/http;msgtype=request"),
        record(http(PAGE.encode())),
        record(b"fetchTimeMs: 3\r\n", "metadata", "application/warc-fields"),
        record("Füchse, als Text".encode(), "conversion", "text/plain"),
        record(PAGE.encode(), "resource", "text/html; charset='utf-8'"),
    ]
    found = read(tmp_path, b"".join(compress(part) for part in parts))
    assert [number for number, _ in found] == [3, 5, 6]
    pages = [page for _, page in found]
    assert all(isinstance(page, Page) for page in pages)
    assert [page.content.decode() for page in pages] == [PAGE, "Füchse, als Text", PAGE]
    assert [page.is_html for page in pages] == [True, False, True]
    assert {page.charset for page in pages} == {"utf-8"}
    assert {page.url for page in pages} == {"https://example.org/a"}
    assert {page.date for page in pages} == {"2024-03-05T10:00:00+00:00"}


@pytest.mark.parametrize(
    "block",
    [
        http(PAGE.encode()),
        http(chunked(PAGE.encode()), Transfer_Encoding="chunked"),
        http(PAGE.encode(), Transfer_Encoding="chunked"),  # put together by the crawler, which kept the header
        http(gzip.compress(PAGE.encode()), Content_Encoding="gzip"),
        http(PAGE.encode(), Content_Encoding="gzip"),  # unpacked by the crawler
        http(chunked(gzip.compress(PAGE.encode())), Content_Encoding="gzip", Transfer_Encoding="chunked"),
        http(zlib.compress(PAGE.encode()), Content_Encoding="deflate"),
        http(zlib.compress(PAGE.encode(), wbits=-15), Content_Encoding="deflate"),
        http(gzip.compress(PAGE[:9].encode()) + gzip.compress(PAGE[9:].encode()), Content_Encoding="gzip"),
        http(brotli(PAGE.encode()), Content_Encoding="br"),
        http(PAGE.encode(), Content_Encoding="br"),
        http(chunked(PAGE.encode())[:-5], Transfer_Encoding="chunked"),  # without the last chunk, which is empty
    ],
)
def test_bodies_are_unpacked(tmp_path, block):
    assert read_one(tmp_path, record(block)).content.decode() == PAGE


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (record(http(b"", "404 Not Found")), "HTTP status 404"),
        (record(http(b"", "301 Moved")), "HTTP status 301"),
        (record(http(b"\x89PNG", media="image/png")), "image and no page"),
        (record(http(b"{}", media="application/json")), "application and no page"),
        (record(http(b"x", media="evil/\x1b[2J")), "of unknown type"),
        (
            record(http(b"%PDF", media="text/html"), WARC_Identified_Payload_Type="application/pdf"),
            "application and no page",
        ),
        (record(b"1.2.3.4", media="text/dns"), "not fetched by HTTP"),
        (record(http(b"User-agent: *", media="text/plain"), WARC_Target_URI="https://a.org/robots.txt"), "robots.txt"),
        (record(http(PAGE.encode()), "revisit"), "revisit"),
        (record(PAGE.encode(), "continuation", "text/html"), "continuation"),
        (record(http(PAGE.encode()), WARC_Segment_Number="1"), "part of a page"),
    ],
)
def test_what_is_no_page_is_told_and_is_not_bad(tmp_path, content, reason):
    assert read_one(tmp_path, content) == NotAPage(reason)


def bad(content: bytes, reason: str, name: str) -> object:
    return pytest.param(content, reason, id=name)


BOMB = gzip.compress(bytes(MAX_RECORD_BYTES + 1), 1, mtime=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        bad(
            record(http(PAGE.encode()), WARC_Truncated="length"), "cut short by the crawler", "truncated by the crawler"
        ),
        bad(record(http(chunked(PAGE.encode())[:20], Transfer_Encoding="chunked")), "chunks are damaged", "chunks cut"),
        bad(record(http(gzip.compress(PAGE.encode())[:30], Content_Encoding="gzip")), "body is cut short", "gzip cut"),
        bad(record(http(b"\x1f\x8b" + b"x" * 50, Content_Encoding="gzip")), "damaged", "gzip damaged"),
        bad(record(http(BOMB, Content_Encoding="gzip")), "is longer than", "gzip bomb"),
        bad(record(http(b"x", Content_Encoding="br")), "damaged", "brotli damaged"),
        bad(record(http(b"x", Content_Encoding="zoo")), "unknown Content-Encoding", "unknown coding"),
        bad(record(http(b"x" * 10), Content_Length="99999999999"), "is longer than", "length that lies"),
        bad(record(http(PAGE.encode()), "rXsponse"), "unknown type", "type that is none"),
        bad(record(b"\xff\xfe no HTTP at all"), "HTTP header is damaged", "no HTTP in it"),
    ],
)
def test_a_bad_record_costs_itself_alone(tmp_path, content, reason):
    before = gzip.compress(record(http(PAGE.encode())))
    found = read(tmp_path, before + gzip.compress(content) + before)
    assert kinds_of(found) == [Page, BadRecord, Page]
    assert reason in found[1][1].reason


@pytest.mark.parametrize(
    "compress", [bytes, lambda part: gzip.compress(part, mtime=0), zstd], ids=["plain", "gzip", "zstd"]
)
def test_reading_goes_on_behind_damage(tmp_path, compress):
    one = compress(record(http(PAGE.encode() + b"x" * 300)))
    damaged = bytearray(one)
    damaged[:8] = b"\0" * 8
    pattern = "PDPPDPDDPPPDPPPPPPDP"
    found = read(tmp_path, b"".join(bytes(damaged) if kind == "D" else one for kind in pattern))
    assert kinds_of(found) == [{"P": Page, "D": BadRecord}[kind] for kind in pattern.replace("DD", "D")]
    begins_well = one[:8] + b"\0" * 20 + one[28:]
    assert kinds_of(read(tmp_path, one + begins_well * 2)) == [Page, BadRecord]  # told once, at a file's end, too


@pytest.mark.parametrize(
    "compress", [bytes, lambda part: gzip.compress(part, mtime=0), zstd], ids=["plain", "gzip", "zstd"]
)
@pytest.mark.parametrize("length", ["99999999999", "900"])
def test_a_length_that_lies_hides_no_page_even_where_the_record_is_not_read(tmp_path, compress, length):
    page = compress(record(http(PAGE.encode())))
    request = compress(record(b"GET / HTTP/1.1\r\n\r\n", "request", Content_Length=length))
    found = read(tmp_path, page + request + page * 5)
    assert kinds_of(found).count(Page) == 6 and kinds_of(found).count(BadRecord) == 1


def test_one_stream_of_all_records_is_read_behind_one_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "MAX_RECORD_BYTES", 1000)
    page = record(http(PAGE.encode()))
    found = read(tmp_path, gzip.compress(page + record(http(b"x" * 2000)) + page))
    assert kinds_of(found) == [Page, BadRecord, Page]


@pytest.mark.parametrize("end", [-20, 300, 20])
def test_a_record_that_was_cut_when_the_crawler_fell_costs_itself(tmp_path, end):
    one = gzip.compress(record(http(PAGE.encode() + random.Random(0).randbytes(2000).hex().encode())))
    assert kinds_of(read(tmp_path, one + one[:end] + one)) == [Page, BadRecord, Page]
    try:
        assert kinds_of(read(tmp_path, one + one[:end])) == [Page, BadRecord]
    except BadRecord:  # so much of it is left that a record begins there: the rest of the file counts as lost
        assert end != 20


def test_a_damaged_stream_costs_a_record(tmp_path):
    one = gzip.compress(record(http(PAGE.encode() + bytes(range(256)) * 20)))
    damaged = bytearray(one)
    for at in range(100, 140):
        damaged[at] ^= 0x55
    found = read(tmp_path, one + bytes(damaged) + one)
    assert kinds_of(found) == [Page, BadRecord, Page]


def test_an_archive_of_damage_alone_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "MAX_BREAKS", 5)
    with pytest.raises(BadRecord, match="5 places in a row"):
        read(tmp_path, (b"\x1f\x8b\x08" + b"\0" * 20) * 50)


@pytest.mark.parametrize("content", [b"<html>", b"PK\x03\x04", b"WA", b"\x5d\x2a\x4d\x18"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    with pytest.raises(BadRecord, match=r"no web archive|damaged|dictionary"):
        read(tmp_path, content)


def test_an_empty_file_has_no_records(tmp_path):
    assert read(tmp_path, b"") == []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_bytes_are_changed_reading_ends_well(tmp_path, seed):
    """Changed, cut out, put in, cut off, plain and gzip: nothing but the three kinds of records, and no other error."""
    chance = random.Random(seed)
    page = PAGE.encode()
    parts = [
        record(http(page)),
        record(http(chunked(page), Transfer_Encoding="chunked")),
        record(http(gzip.compress(page, mtime=0), Content_Encoding="gzip")),
        record("Füchse".encode(), "conversion", "text/plain"),
    ]
    for _ in range(40):
        content = bytearray(b"".join(gzip.compress(part, mtime=0) if seed % 2 else part for part in parts))
        for _ in range(chance.choice([1, 2, 5, 20])):
            at = chance.randrange(len(content))
            match chance.randrange(4):
                case 0:
                    content[at] = chance.randrange(256)
                case 1:
                    del content[at : at + min(40, len(content) - 1)]
                case 2:
                    content[at:at] = chance.randbytes(20)
                case 3:
                    del content[max(1, at) :]
        try:
            kinds_of(read(tmp_path, bytes(content)))
        except BadRecord:
            continue
