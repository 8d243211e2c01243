"""Personal data give way to examples; what only looks like them stays."""

import time

import pytest

from fox.data.personal import KINDS, mask_personal, passes_luhn


@pytest.mark.parametrize(
    ("text", "masked", "kind"),
    [
        ("Write to jane.doe+x@mail.example.co.uk.", "Write to email@example.com.", "email"),
        ("<Jöran_2@host-1.de>", "<email@example.com>", "email"),
        ("from 8.8.8.8:53, then", "from 192.0.2.1:53, then", "ip"),
        ("at 2a00:1450:4001:82a::200e now", "at 2001:db8::1 now", "ip"),
        ("card 4111 1111 1111 1111!", "card 0000 0000 0000 0000!", "card"),
        ("5500-0000-0000-0004", "0000-0000-0000-0000", "card"),
        ("Amex 378282246310005", "Amex 000000000000000", "card"),
        ("10 3782 822463 10005", "10 0000 000000 00000", "card"),
        ("call +49 (0) 30 / 1234-5678", "call +1 555 0100", "phone"),
        ("call +442079460958.", "call +1 555 0100.", "phone"),
        ("call (212) 555-0187 or 212-555-0187", "call +1 555 0100 or +1 555 0100", "phone"),
    ],
)
def test_it_is_replaced_and_counted(text, masked, kind):
    assert mask_personal(text, KINDS)[0] == masked
    assert set(mask_personal(text, KINDS)[1]) == {kind}
    assert mask_personal(text, [kind])[0] == masked
    assert mask_personal(text, set(KINDS) - {kind})[0] != masked


@pytest.mark.parametrize(
    "text",
    [
        "user@localhost and @handle and a@b and 3 @ 4.50 each",
        "127.0.0.1, 10.0.0.7, 192.168.1.1, 192.0.2.1, 999.1.1.1, section 1.2.3.4.5, version 8.8.8",
        "std::vector a::b ::1 fe80::1 2001:db8::1 12:30:45:00 at 10:20:30",
        "4111 1111 1111 1112 is no card, 1234567890123456 neither, ISBN 978-3-16-148410-0 neither",
        "In 1999-2000, 3.14159265358979 and 100,000,000 and +5 and 2024-03-05 and 555-0187",
        "1+234567 and x+49301234567 and 212.555.01871",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert mask_personal(text, KINDS) == (text, {})


def test_only_what_is_asked_for_is_replaced():
    text = "a@b.de 8.8.8.8 4111111111111111 +49 30 12345678"
    assert mask_personal(text, []) == (text, {})
    assert mask_personal(text, ["ip"])[0] == text.replace("8.8.8.8", "192.0.2.1")
    assert mask_personal(text, reversed(list(KINDS)))[1] == {"email": 1, "ip": 1, "card": 1, "phone": 1}


@pytest.mark.parametrize("digits", ["79927398713", "4111111111111111", "0"])
def test_check_digits(digits):
    assert passes_luhn(digits)
    assert not any(passes_luhn(digits[:-1] + other) for other in "0123456789" if other != digits[-1])


@pytest.mark.parametrize("text", ["a." * 500_000, "1" * 10**6, "1 " * 500_000, "+1" * 500_000, ":" * 10**6, "a@" * 500_000, "x@" + "a." * 500_000, "(123) " * 200_000, "1.1." * 250_000])  # fmt: skip
def test_hostile_text_takes_no_longer_than_other_text(text):
    start = time.process_time()
    mask_personal(text, KINDS)
    assert time.process_time() - start < 5
