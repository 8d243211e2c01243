"""Personal data in a text give way to values that are nobody's: e-mail and IP addresses, telephone and card numbers.

The values are those that standards keep free for examples, so that a text reads on as it did. Numbers are looked at twice: a card's must be of a
length and a beginning that card issuers have, and its check digit must be right (Luhn, ISO/IEC 7812); an address' must be one that the internet routes.
Telephone numbers are found where they begin with `+`, or are written as in North America; others look like any other number.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

from fox.data.document import Document

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}(?![\w-])", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-f]{0,4}:){3,7}[0-9a-f]{0,4}(?![\w:])", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![\w+])\+\d(?:[ ().\-/]{0,3}\d){6,14}(?!\w)|(?<![\w-])(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\w-])"
)
_CARD = re.compile(  # in one, or in the groups in which cards show it
    r"(?<![\w.-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5})(?![\w-])"
)

_CARDS = (  # beginning, lengths (ISO/IEC 7812 and the issuers' own lists)
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"3(?:0[0-5]|[68])"), (14,)),
    (re.compile(r"35|6011|65"), (16,)),
    (re.compile(r"62"), (16, 17, 18, 19)),
)


def mask_personal(text: str, kinds: Iterable[str]) -> tuple[str, Counter[str]]:
    """The text with the personal data of these kinds (of KINDS) replaced, and how many there were of each."""
    wanted, found = set(kinds), Counter[str]()
    for kind in KINDS:  # in this order, whatever the recipe's: a card's number may look like a telephone's
        if kind in wanted:
            for pattern, replaced in KINDS[kind]:
                text = pattern.sub(partial(_counted, found, kind, replaced), text)
    return text, found


def mask_document(document: Document, kinds: Sequence[str]) -> tuple[Document, Counter[str]]:
    """The document with the personal data of these kinds replaced in its text or in what is said in it; and how many there were."""
    if not kinds:
        return document, Counter()
    if document.text is not None:
        text, found = mask_personal(document.text, kinds)
        return (replace(document, text=text), found) if found else (document, found)
    messages, found = [], Counter[str]()
    for message in document.messages or ():
        content, of_message = mask_personal(message["content"], kinds)
        found += of_message
        messages.append({**message, "content": content})
    return replace(document, messages=tuple(messages)), found


def _counted(found: Counter[str], kind: str, replaced: Callable[[str], str | None], match: re.Match[str]) -> str:
    value = replaced(match[0])
    if value is None:
        return match[0]
    found[kind] += 1
    return value


def _email(_: str) -> str:
    return "email@example.com"  # RFC 2606


def _address(example: str, value: str) -> str | None:
    try:
        return example if ipaddress.ip_address(value).is_global else None
    except ValueError:
        return None


def _card(value: str) -> str | None:
    digits = re.sub(r"\D", "", value)
    is_card = any(begins.match(digits) and len(digits) in lengths for begins, lengths in _CARDS)
    return re.sub(r"\d", "0", value) if is_card and passes_luhn(digits) else None


def passes_luhn(digits: str) -> bool:
    """Whether the last digit of a number is the right one for the others (ISO/IEC 7812-1, annex B)."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def _phone(_: str) -> str:
    return "+1 555 0100"  # of the numbers that are kept for fiction


KINDS: dict[str, tuple[tuple[re.Pattern[str], Callable[[str], str | None]], ...]] = {
    "email": ((_EMAIL, _email),),
    "ip": ((_IPV4, partial(_address, "192.0.2.1")), (_IPV6, partial(_address, "2001:db8::1"))),  # RFC 5737, RFC 3849
    "card": ((_CARD, _card),),
    "phone": ((_PHONE, _phone),),
}
"""What can be masked, in the order in which it is."""
