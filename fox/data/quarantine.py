"""What becomes of records that can't be used: set aside, counted by reason and shown; too many stop the run."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fox.errors import UserError
from fox.recipe.schema import Source

MAX_RECORD_BYTES = 64 * 2**20
"""The longest record. The Bible is 4 MiB: what is longer is a dump or a bomb, and would have to fit in memory."""

TOO_LONG = f"is longer than {MAX_RECORD_BYTES // 2**20} MiB"

KEPT = 20
"""How many bad records and skipped files are kept to be shown; the others are only counted."""

EXCERPT_CHARACTERS = 120


class BadRecord(Exception):  # noqa: N818  # it is not only raised: it stands for the record
    """A record, or the rest of a file, that can't be used.

    `reason` is one of few, for it is counted by; what differs from record to record is in `evidence`, to be shown.
    `records` says for how many it stands.
    """

    def __init__(self, reason: str, evidence: object = None, *, records: int = 1) -> None:
        super().__init__(reason)
        self.reason = reason
        self.evidence = evidence
        self.records = records


class Refusal(NamedTuple):
    """One bad record, as it is shown."""

    place: str
    reason: str
    excerpt: str


@dataclass
class Tally:
    """What was read of one source, and what was not."""

    name: str
    source: Source
    files: int = 0
    broken_files: int = 0
    good: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Bad records by reason. A file that is broken as a whole, or from some place on, counts as one."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What was cut from good records, and records that hold no document, by reason."""
    masked: Counter[str] = field(default_factory=Counter)
    """Personal data that were replaced, by kind."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Files that were not opened, by suffix or reason."""
    first_bad: list[Refusal] = field(default_factory=list)
    first_skipped: list[str] = field(default_factory=list)
    first_place: dict[str, str] = field(default_factory=dict)
    """Where each reason was met first."""

    @property
    def records(self) -> int:
        return self.good + self.bad.total()

    def refuse(
        self, place: str, reason: str, evidence: object = None, *, records: int = 1, whole_file: bool = False
    ) -> None:
        """Set a record aside. `whole_file`: it and all that would have come after it in its file."""
        self.bad[reason] += records
        self.broken_files += whole_file
        self.first_place.setdefault(reason, place)
        if len(self.first_bad) < KEPT:
            self.first_bad.append(Refusal(place, reason, excerpt(evidence)))

    def skip(self, name: str, reason: str) -> None:
        """Count a file that isn't opened."""
        self.skipped[reason] += 1
        if len(self.first_skipped) < KEPT:
            self.first_skipped.append(name)

    def check(self) -> None:
        """Raise UserError where too many records are bad, or too many files: who knows how much a broken one held?"""
        if not self.good:
            raise UserError(
                f"source.{self.name}.path",
                self.source.path,
                problem=f"none of its {self.records} records can be used: {self._commonest() or self._left_out()}",
                mend="Mend the files, or name others.",
            )
        bad = self.bad.total()
        shares = [
            (bad / self.records, f"{bad} of its {self.records} records can't be used"),
            (self.broken_files / self.files, f"{self.broken_files} of its {self.files} files are broken"),
        ]
        share, problem = max(shares)
        if share > self.source.max_bad_fraction:
            raise UserError(
                f"source.{self.name}.max_bad_fraction",
                self.source.max_bad_fraction,
                problem=f"{problem} ({share:.2%}): {self._commonest()}",
                mend=f"Mend them, or take what is good: "
                f"-o source.{self.name}.max_bad_fraction={math.ceil(share * 100) / 100}",
            )

    def add(self, reading: dict[str, Any]) -> None:
        """Add what was read elsewhere, as `as_dict` has it. Parts are added in the order of their files."""
        self.files += reading["files"]
        self.broken_files += reading["broken_files"]
        self.good += reading["good"]
        for name in ("bad", "left_out", "masked", "skipped"):
            getattr(self, name).update(reading[name])
        for bad in reading["first_bad"]:
            self.first_place.setdefault(bad["reason"], bad["place"])
            self.first_bad.append(Refusal(**bad))
        self.first_bad = self.first_bad[:KEPT]

    def _commonest(self) -> str:
        return "; ".join(
            f"{count} x {reason} (first: {self.first_place.get(reason, 'not kept')})"
            for reason, count in self.bad.most_common(3)
        )

    def _left_out(self) -> str:
        return "; ".join(f"{count} x {reason}" for reason, count in self.left_out.most_common(5)) or "there are none"

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "files": self.files,
            "broken_files": self.broken_files,
            "records": self.records,
            "good": self.good,
            "bad": dict(self.bad.most_common()),
            "first_bad": [refusal._asdict() for refusal in self.first_bad],
            "left_out": dict((+self.left_out).most_common()),
            "masked": dict(self.masked.most_common()),
            "skipped": dict(self.skipped.most_common()),
            "first_skipped": list(self.first_skipped),
        }


def usable_text(value: object, what: str) -> str:
    """`value`, where it is a string with something in it that UTF-8 can write. Raises BadRecord."""
    if not isinstance(value, str):
        raise BadRecord(f"{what} is not a string", value)
    if not value.strip("\0 \t\r\n") or not value.strip():
        raise BadRecord(f"{what} is empty", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{what} has half a surrogate pair, which is no character", value) from None
    return value


def visible(text: str) -> str:
    """`text` that can't move a terminal's cursor, nor fail to be written: names and excerpts come from strangers."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def excerpt(evidence: object) -> str:
    """The beginning of what was bad, in one printable line."""
    if evidence is None:
        return ""
    if isinstance(evidence, bytes):
        evidence = evidence[: 4 * EXCERPT_CHARACTERS].decode(errors="replace")
    if not isinstance(evidence, str):
        evidence = _brief.repr(evidence)
    return visible(evidence[:EXCERPT_CHARACTERS])


_brief = reprlib.Repr()  # of a nest of a thousand lists it looks at a few, where repr() would look at all
_brief.maxstring = _brief.maxother = EXCERPT_CHARACTERS
_brief.maxlevel = 4
