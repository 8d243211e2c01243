"""Real archives: of Common Crawl, of the Internet Archive in 2008, and those that a library's tests have of damage."""

from pathlib import Path

import pytest

from fox.data.document import Document
from fox.data.quarantine import Tally
from fox.data.sources import read_source
from fox.recipe.schema import Source

ARCHIVES = Path(__file__).parents[3] / "shared" / "data" / "web" / "warc"

pytestmark = pytest.mark.skipif(not ARCHIVES.is_dir(), reason="needs ../shared/data/web/warc")


def read(files: str) -> tuple[list[Document], Tally]:
    source = Source(path=str(ARCHIVES), files=files, max_bad_fraction=1.0)
    tally = Tally("web", source)
    return list(read_source("web", source, tally)), tally


def test_pages_of_2008_are_read_and_the_others_counted_by_reason():
    documents, tally = read("aut_archive_org_2008.warc.gz")
    assert (len(documents), tally.good, tally.bad.total()) == (96, 96, 0)
    assert tally.left_out == {
        "image and no page": 55,
        "HTTP status 404": 40,
        "not fetched by HTTP": 38,
        "robots.txt": 33,
        "application and no page": 16,
        "text and no page": 13,
        "HTTP status 302": 5,
        "HTTP status 301": 2,
        "no main text": 1,
    }
    assert documents[0].place.startswith("aut_archive_org_2008.warc.gz record ")


def test_pages_of_a_crawl_are_read_in_whatever_charset_they_are():
    documents, tally = read("resiliparse_commoncrawl.warc.gz")
    assert (len(documents), tally.bad.total(), tally.left_out.total()) == (16, 0, 0)
    assert not any("\ufffd" in (document.text or "") for document in documents)
    assert any("\u4e00" <= character <= "\u9fff" for document in documents for character in document.text or "")


def test_the_page_and_the_text_that_common_crawl_made_of_it():
    [page], _ = read("commoncrawl_whirlwind.warc.gz")
    [text], _ = read("commoncrawl_whirlwind.warc.wet.gz")
    assert page.text and text.text and len(page.text) < len(text.text)
    said = set(text.text.split())
    words = page.text.split()
    assert sum(word in said for word in words) > 0.9 * len(words)


def test_chunks_are_put_together_and_a_cut_file_is_bad():
    documents, tally = read("warcio_*")
    assert {document.place.partition(" ")[0] for document in documents} == {
        "warcio_example.warc.gz",
        "warcio_iana_chunked.warc",
    }
    assert not any("\r\n0\r\n" in (document.text or "") for document in documents)
    assert tally.bad == {"compressed body is cut short": 1, "record is damaged": 1}
    assert tally.first_bad[0].place == "warcio_truncated.warc record 3"


def test_an_archive_of_metadata_is_passed_over():
    documents, tally = read("commoncrawl_*")
    assert len(documents) == 2 and tally.skipped == {".wat.gz": 1}
