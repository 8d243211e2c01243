"""A document: what a model learns from, and what is known of it beside."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from fox.artifacts import sha256_of_json
from fox.data.conversations import Message


class About(NamedTuple):
    """What is known of a document beside its content. What is not known is empty."""

    url: str = ""
    title: str = ""
    date: str = ""
    """When it was published or changed last."""
    fetched: str = ""
    """When a crawler had it."""
    language: str = ""
    """As its author or its file has it."""
    license: str = ""
    """Under which terms it is, where its row says so itself."""


NOTHING_KNOWN = About()

MAX_ABOUT = 2_000
"""Characters of each; what is longer is cut. Browsers and crawlers end addresses there, too."""


@dataclass(frozen=True)
class Document:
    """One text or one conversation: of `text` and `messages` the other is None."""

    source: str
    place: str
    """`FILE`, `FILE:LINE`, `FILE row 17`, `FILE record 17` or `FILE key ID`; FILE is named from source.path on."""
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    about: About = NOTHING_KNOWN
    language_score: float = 0.0
    """The probability of `about.language`, where that was found from the text."""

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the content alone, so that the same document counts as the same wherever it was found."""
        if self.text is not None:
            return hashlib.sha256(self.text.encode()).digest()
        return bytes.fromhex(sha256_of_json(self.messages))

    @property
    def num_bytes(self) -> int:
        """Bytes of the content in UTF-8; of a conversation, without its roles."""
        contents = [self.text] if self.text is not None else [message["content"] for message in self.messages or ()]
        return sum(len(content.encode()) for content in contents)

    @property
    def content(self) -> str:
        """It as plain text: of a conversation, what was said."""
        return self.text if self.text is not None else "\n".join(message["content"] for message in self.messages or ())


def about_row(row: dict[str, object]) -> About:
    """What a row of a file says of its document: values of these names, where they are text."""
    values = [row.get(name) for name in About._fields]
    return About(*(_one_line(value) if isinstance(value, str) else "" for value in values))


def _one_line(text: str) -> str:
    return " ".join(text[:MAX_ABOUT].encode(errors="ignore").decode().split())  # half a surrogate pair can't be written
