"""A page's bytes become text in the order that browsers have: mark, header, meta tag, the bytes themselves."""

import codecs
import random

import pytest

from fox.data.quarantine import BadRecord
from fox.data.web.charset import decoded

GERMAN = "Füchse sind schön, größer als Mäuse und älter als Flöhe. " * 10
RUSSIAN = "Лисица живёт в лесу и охотится на мышей каждую ночь. " * 20


def page(text: str, charset: str, meta: str = "") -> bytes:
    return f"<html><head>{meta}</head><body><p>{text}</p></body></html>".encode(charset)


@pytest.mark.parametrize(
    ("content", "declared"),
    [
        pytest.param(codecs.BOM_UTF8 + page(GERMAN, "utf-8"), "iso-8859-1", id="a mark is above the header"),
        pytest.param(codecs.BOM_UTF16_LE + page(GERMAN, "utf-16-le"), None, id="UTF-16, little end first"),
        pytest.param(codecs.BOM_UTF16_BE + page(GERMAN, "utf-16-be"), None, id="UTF-16, big end first"),
        pytest.param(page(GERMAN, "latin-1"), "ISO-8859-1", id="the header's"),
        pytest.param(page(GERMAN, "latin-1"), " Latin1 ", id="another name for it"),
        pytest.param(page(GERMAN, "latin-1", "<meta charset=utf-8>"), "latin1", id="the header is above the tag"),
        pytest.param(page(GERMAN, "latin-1", '<meta charset="iso-8859-1">'), None, id="the tag's"),
        pytest.param(
            page(GERMAN, "cp1252", "<meta http-equiv='Content-Type' content='text/html; charset=windows-1252'>"),
            None,
            id="the longer tag's",
        ),
        pytest.param(
            page(GERMAN, "utf-8", "<meta charset=utf-16>"), None, id="a tag that could be read is in no UTF-16"
        ),
        pytest.param(page(GERMAN, "utf-8"), None, id="UTF-8 by its bytes"),
        pytest.param(page(GERMAN, "utf-8"), "no-such-charset", id="a header that names none"),
        pytest.param(page(GERMAN, "latin-1"), "utf-8", id="a header that can't be true"),
        pytest.param(page(GERMAN, "latin-1", "<meta charset=utf-8>"), None, id="a tag that can't be true"),
    ],
)
def test_german_is_read_as_it_was_written(content, declared):
    assert GERMAN in decoded(content, declared)


def test_a_few_umlauts_among_much_markup_tell_a_header_that_is_not_true():
    content = page("Füchse. " + "<br>" * 20_000, "latin-1") + "<p>Über Mäuse</p>".encode("latin-1")
    assert "Über Mäuse" in decoded(content, "utf-8")


@pytest.mark.parametrize(("charset", "name"), [("cp932", "shift_jis"), ("cp949", "euc-kr"), ("gb18030", "gb2312")])
def test_a_name_means_what_browsers_read_by_it(charset, name):
    text = {"cp932": "①㈱髙", "cp949": "똠방각하", "gb18030": "镕㐂"}[charset]
    assert text in decoded(page(text, charset), name)


@pytest.mark.parametrize("charset", ["koi8-r", "cp1251", "utf-8"])
def test_russian_is_told_by_its_bytes(charset):
    assert RUSSIAN in decoded(page(RUSSIAN, charset))


@pytest.mark.parametrize("name", ["rot13", "zlib", "unicode_escape", "idna", "utf-7", "x" * 10_000])
def test_codecs_of_python_that_no_browser_knows_are_not_used(name):
    assert "+AGE-" in decoded(page("+AGE- \\u0041 fox", "ascii"), name)


def test_a_character_cut_in_two_at_the_end_is_no_reason_to_take_another_charset():
    cut = page(GERMAN, "utf-8")[: -len("</p></body></html>")].rstrip() + "ü".encode()[:1]
    assert GERMAN.strip() in decoded(cut)


def test_what_is_no_text_in_any_charset_is_told():
    with pytest.raises(BadRecord, match="charset"):
        decoded(random.Random(0).randbytes(3000), is_html=False)
