"""Addresses that are not wanted, by lists of domains and pages: millions of entries, of which each is kept as 8 bytes.

An entry is a host (`example.com`, also with a scheme or a `/` at its end), which blocks all its pages and those of its subdomains; or a host and a path
(`example.com/ads`), which blocks that page and those below it: with the same path before a `/`, a `?` or the end, so not `/adsense`. Where an
entry has a query (`example.com/show?id=7`), it blocks that page with what may follow after `&`. Scheme, user, port and fragment count for nothing,
nor does the case of a host; `www.` counts for nothing before a path. Paths are compared as they are written.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

LONGEST_URL = 8192
"""Only so many characters of an address are looked at."""

_SCHEME = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_HOST = re.compile(r"(?:[^\s/?#@]*@)?(\[[0-9a-f:.]*\]|[^\s/?#@:\[\]]*)(?::\d*)?(?=[/?#]|$)", re.IGNORECASE)
_PLAIN = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+")
"""What nearly all lines of such lists are: a host as it is kept."""
_STEPS = re.compile(r"[/?&]")


class BlockedUrls:
    """A list of hosts and pages, ready to be asked."""

    def __init__(self, entries: Iterable[str]) -> None:
        """Entries are as `blocked_url` gives them."""
        hashes, self._most_steps = array("Q"), 0
        for entry in entries:
            hashes.append(_hash(entry))
            if "/" in entry:
                self._most_steps = max(self._most_steps, len(_STEPS.findall(entry)))
        self._hashes = np.frombuffer(hashes, dtype=np.uint64) if hashes else np.empty(0, dtype=np.uint64)
        self._hashes = np.unique(self._hashes)

    @property
    def bytes(self) -> int:
        """What the list takes in memory."""
        return int(self._hashes.nbytes)

    def has(self, url: str) -> bool:
        """Whether an address is one of the list, or below one. What is no address is not."""
        try:
            host, path = _split(url[:LONGEST_URL])
        except ValueError:
            return False
        if not self._hashes.size:
            return False
        hashes = np.fromiter(map(_hash, self._above(host, path)), dtype=np.uint64)
        places = np.searchsorted(self._hashes, hashes)
        places[places == self._hashes.size] = 0
        return bool((self._hashes[places] == hashes).any())

    def _above(self, host: str, path: str) -> Iterator[str]:
        """All entries by which an address would be blocked."""
        labels = host.split(".")
        for first in range(len(labels)):
            yield ".".join(labels[first:])
        if not self._most_steps:
            return
        page = host.removeprefix("www.") + path
        for number, step in enumerate(_STEPS.finditer(page)):
            if number > self._most_steps:
                return
            if number:
                yield page[: step.start()]
        yield page


def blocked_url(line: str) -> str:
    """An entry of a list. Raises ValueError where a line is none."""
    if _PLAIN.fullmatch(line):
        return line
    host, path = _split(line)
    if any(sign.isspace() for sign in path):
        raise ValueError("has a space in an address")
    return host.removeprefix("www.") + path if path else host


def _split(url: str) -> tuple[str, str]:
    """Host and path with the query; a path of nothing but `/` is empty. Raises ValueError."""
    scheme = _SCHEME.match(url)
    match = _HOST.match(url, scheme.end() if scheme else 0)
    host = match[1].rstrip(".").lower() if match else ""
    if not match or not host or ".." in host or host.startswith("."):
        raise ValueError("is no domain and no address")
    if not host.isascii():
        host = _as_registered(host)
    path = url[match.end() :].partition("#")[0]
    return host, path.rstrip("/")


def _as_registered(host: str) -> str:
    """A host of other letters than ASCII's as the domain name system has it (RFC 3490)."""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        raise ValueError("is no domain that can be registered") from None


def _hash(entry: str) -> int:
    return int.from_bytes(hashlib.blake2b(entry.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
