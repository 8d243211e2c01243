"""Bytes of a web page become text: by the byte-order mark, the HTTP header, a meta tag, else by what the bytes look like.

That is the order of browsers (WHATWG HTML, "determining the character encoding"). A charset that can't be what the bytes are in is passed
over. Needs resiliparse, which is imported only here and only when it is used.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from fox.data.quarantine import BadRecord

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))

_META = re.compile(
    rb"""<meta\s[^>]{0,500}?charset\s{0,20}=\s{0,20}["']?\s{0,20}([A-Za-z0-9_:.-]{2,40})""", re.IGNORECASE
)

_META_BYTES = 4096
"""Browsers look into the first 1,024; pages that begin with comments or scripts have it later."""

MAX_DAMAGE = 0.05
"""The share of what is no ASCII that may be no character in a charset, or two characters: a page may be cut in the middle of one."""

_BEYOND_ASCII = bytes(range(128, 256))

_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs"}
"""Where browsers read more by a name than Python does (WHATWG Encoding)."""


def decoded(content: bytes, declared: str | None = None, *, is_html: bool = True) -> str:
    """The text of a page's bytes; `declared` is the charset in its HTTP header. Raises BadRecord where no charset fits."""
    for mark, charset in _MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(charset, "replace")
    allowed = max(2, MAX_DAMAGE * (len(content) - len(content.translate(None, _BEYOND_ASCII))))
    for charset in dict.fromkeys(_candidates(content, declared, is_html)):
        text = content.decode(charset, "replace")
        if text.count("\ufffd") <= allowed:
            return text
    raise BadRecord("its charset can't be told", content[:1000])


def _candidates(content: bytes, declared: str | None, is_html: bool) -> Iterator[str]:
    """Python's names for the charsets that a page may be in, the likeliest first."""
    from resiliparse.parse.encoding import detect_encoding

    if declared and (charset := _codec(declared)):
        yield charset
    if is_html and (found := _META.search(content[:_META_BYTES])):
        # A page whose meta tag could be read is in no UTF-16, whatever it says (WHATWG HTML, "prescan").
        charset = _codec(found[1].decode("ascii"))
        yield "utf-8" if charset and charset.startswith("utf-16") else charset or "utf-8"
    if content.isascii():
        yield "utf-8"
    if charset := _codec(detect_encoding(content) or ""):
        yield charset
    yield "utf-8"


def _codec(label: str) -> str | None:
    """Python's name for a label as web pages have it, or None for one that no browser knows: latin1 is windows-1252 there."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    known = map_encoding_to_html5(label.strip(), fallback_utf8=False)
    try:
        name = codecs.lookup(known).name if known else None
    except LookupError:
        return None
    return _WIDER.get(name, name) if name else None
