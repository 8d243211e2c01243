"""Blocked domains and pages: what an entry blocks and what it does not."""

import time

import pytest

from fox.data.filters.blocked import BlockedUrls, blocked_url


def blocks(entry: str, url: str) -> bool:
    return BlockedUrls([blocked_url(entry)]).has(url)


@pytest.mark.parametrize("entry", ["example.com", "Example.COM", "example.com/", "https://example.com", "//example.com", "http://user:pw@example.com:8080/", "example.com."])  # fmt: skip
def test_a_domain_blocks_its_subdomains(entry):
    for url in (
        "https://example.com",
        "http://www.example.com/a?b=c#d",
        "https://a.b.example.com:443/x",
        "HTTPS://EXAMPLE.com./",
        "//user@example.com/",
        "example.com/a",
    ):
        assert blocks(entry, url), url
    for url in (
        "https://example.com.org/",
        "https://badexample.com",
        "https://com/example.com",
        "https://example.org/?u=example.com",
        "",
    ):
        assert not blocks(entry, url), url


@pytest.mark.parametrize("entry", ["example.com/ads", "https://www.example.com/ads/", "http://example.com:80/ads#top"])
def test_a_page_blocks_what_is_below_it(entry):
    for url in (
        "https://example.com/ads",
        "https://www.example.com/ads/",
        "http://example.com/ads/1/2.html",
        "https://example.com/ads?x=1",
        "https://example.com/ads#x",
    ):
        assert blocks(entry, url), url
    for url in (
        "https://example.com/adsense",
        "https://example.com/",
        "https://example.com/x/ads",
        "https://example.com/ADS",
        "https://a.example.com/ads",
    ):
        assert not blocks(entry, url), url


def test_a_page_with_a_query():
    entry = "example.com/show?id=7"
    assert blocks(entry, "http://example.com/show?id=7")
    assert blocks(entry, "http://example.com/show?id=7&page=2#x")
    assert not blocks(entry, "http://example.com/show?id=71")
    assert not blocks(entry, "http://example.com/show?page=2&id=7")
    assert not blocks(entry, "http://example.com/show")


def test_other_letters_and_addresses_of_machines():
    assert blocks("bücher.example", "https://xn--bcher-kva.example/a")
    assert blocks("xn--bcher-kva.example", "https://Bücher.example/a")
    assert blocks("[2001:db8::1]", "http://[2001:DB8::1]:80/x")
    assert blocks("192.0.2.7", "http://192.0.2.7/x")
    assert not blocks("192.0.2.7", "http://192.0.2.77/x")


def test_a_deep_page_is_found_among_many():
    urls = [f"h{number}.example.com" for number in range(1000)] + ["example.org/a/b/c/d/e/f?g=h&i=j"]
    blocked = BlockedUrls(map(blocked_url, urls))
    assert blocked.bytes == 1001 * 8
    assert all(blocked.has(f"https://x.{url}/y") for url in urls[:-1])
    assert blocked.has("http://example.org/a/b/c/d/e/f?g=h&i=j&k=l")
    assert not blocked.has("http://example.org/a/b/c/d/e/f?g=h")
    assert not blocked.has("https://h1000.example.com")


@pytest.mark.parametrize("line", ["/a/b", "http://", "a b.com", "..", ".com", "a..b", "mailto:someone", "http://[::1", "ex ample/x", "\u0300" * 70])  # fmt: skip
def test_a_line_that_is_no_address_is_refused(line):
    with pytest.raises(ValueError, match="is no "):
        blocked_url(line)
    assert not blocks("example.com", line)


def test_a_space_in_a_path_is_refused_in_a_list_alone():
    with pytest.raises(ValueError, match="has a space"):
        blocked_url("example.com/a b")
    assert blocks("example.com", "http://example.com/a b")


def test_an_empty_list_blocks_nothing():
    assert not BlockedUrls([]).has("https://example.com")


@pytest.mark.parametrize("url", ["http://example.com/" + "a/" * 10**6, "http://" + "a." * 10**6 + "com", "@" * 10**6, "a:" * 10**6, "//" * 10**6, "http://" + "ü" * 10**6, "[" * 10**6, "http://example.org/?" + "&" * 10**6])  # fmt: skip
def test_hostile_addresses_take_no_longer_than_others(url):
    blocked = BlockedUrls([blocked_url("example.net/" + "x/" * 4000)])
    start = time.process_time()
    assert not blocked.has(url)
    assert time.process_time() - start < 1
