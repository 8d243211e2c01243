"""What became of a source's documents on their way into the corpus: how many each rule took away, and a few of them to look at."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from fox.data.document import Document
from fox.data.personal import mask_personal

SAMPLES = 5
"""Of what each reason dropped: those with the lowest hashes, so that they are the same however the work was cut."""

SAMPLE_CHARACTERS = 600

MOST_LABELS, LABEL_CHARACTERS, OTHERS = 500, 100, "others"
"""Of licences and languages."""

STEPS = (
    "licence",
    "url",
    "language",
    "bad words",
    "gopher",
    "repetition",
    "c4",
    "fineweb",
    "evaluation",
    "exact duplicates",
    "near duplicates",
    "repeated lines",
)
"""What a document has to pass, in this order."""


@dataclass
class Count:
    documents: int = 0
    bytes: int = 0

    def add(self, documents: int, size: int) -> None:
        self.documents += documents
        self.bytes += size


@dataclass
class Dropped(Count):
    """What a reason took away."""

    samples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Funnel:
    """One source's."""

    read: Count = field(default_factory=Count)
    kept: Count = field(default_factory=Count)
    dropped: dict[str, dict[str, Dropped]] = field(default_factory=dict)
    """By step of STEPS and by reason."""
    moved: dict[str, Count] = field(default_factory=dict)
    """To the source that has the best documents of this one."""
    cut: dict[str, Counter[str]] = field(default_factory=dict)
    """Bytes that a step took from documents which it kept, by reason."""
    licenses: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    mask: tuple[str, ...] = ()
    """Personal data that samples are shown without, wherever a document was dropped."""

    def before_the_last_step(self, part: dict[str, Any]) -> None:
        """Add what a task had counted (`as_dict`) of documents of which none is kept for sure yet."""
        self.add({**part, "kept": vars(Count()), "licenses": {}, "languages": {}})

    def drop(self, document: Document, step: str, reason: str) -> None:
        """Count a document that goes no further."""
        dropped = self._reason(step, reason)
        dropped.add(1, document.num_bytes)
        lowest = document.digest[:8].hex()
        if len(dropped.samples) < SAMPLES or lowest <= dropped.samples[-1]["hash"]:
            text, _ = mask_personal(document.content[: 2 * SAMPLE_CHARACTERS], self.mask)
            sample = {
                "hash": lowest,
                "place": document.place,
                "url": document.about.url,
                "text": text[:SAMPLE_CHARACTERS],
            }
            dropped.samples = _lowest([*dropped.samples, sample])

    def cut_from(self, step: str, reasons: Counter[str]) -> None:
        """Count bytes that a document lost."""
        if reasons:
            self.cut.setdefault(step, Counter()).update(reasons)

    def keep(self, document: Document) -> None:
        """Count a document that has passed everything."""
        self.kept.add(1, document.num_bytes)
        _count(self.licenses, document.about.license or "not stated")
        if document.about.language:
            _count(self.languages, document.about.language)

    def move(self, document: Document, to: str) -> None:
        """Count a document that has passed everything, and goes to another source."""
        self.moved.setdefault(to, Count()).add(1, document.num_bytes)

    def arrive(self, document: Document) -> None:
        """Count a document that has come from another source."""
        self.read.add(1, document.num_bytes)
        self.keep(document)

    def add(self, part: dict[str, Any]) -> None:
        """Add what a task has counted (`as_dict`)."""
        self.read.add(part["read"]["documents"], part["read"]["bytes"])
        self.kept.add(part["kept"]["documents"], part["kept"]["bytes"])
        for step, reasons in part["dropped"].items():
            for reason, of_part in reasons.items():
                dropped = self._reason(step, reason)
                dropped.add(of_part["documents"], of_part["bytes"])
                dropped.samples = _lowest([*dropped.samples, *of_part["samples"]])
        for to, moved in part["moved"].items():
            self.moved.setdefault(to, Count()).add(moved["documents"], moved["bytes"])
        for step, cut in part["cut"].items():
            self.cut_from(step, Counter(cut))
        for name, counts in (("licenses", self.licenses), ("languages", self.languages)):
            for label, documents in part[name].items():
                _count(counts, label, documents)

    def as_dict(self, with_samples: bool = True) -> dict[str, Any]:
        """As it is kept in JSON, in the order of STEPS and with the commonest reasons first."""
        return {
            "read": vars(self.read),
            "dropped": {
                step: {
                    reason: {k: v for k, v in vars(dropped).items() if with_samples or k != "samples"}
                    for reason, dropped in _commonest(self.dropped[step])
                }
                for step in STEPS
                if step in self.dropped
            },
            "cut": {step: _counted(self.cut[step]) for step in STEPS if step in self.cut},
            "moved": {to: vars(moved) for to, moved in self.moved.items()},
            "kept": vars(self.kept),
            "licenses": _counted(self.licenses),
            "languages": _counted(self.languages),
        }

    def _reason(self, step: str, reason: str) -> Dropped:
        return self.dropped.setdefault(step, {}).setdefault(reason, Dropped())


def _count(counts: Counter[str], label: str, documents: int = 1) -> None:
    """What strangers write is of any number and length: what is beyond the first MOST_LABELS is counted together."""
    label = label[:LABEL_CHARACTERS]
    counts[label if label in counts or len(counts) < MOST_LABELS else OTHERS] += documents


def _lowest(samples: list[dict[str, str]]) -> list[dict[str, str]]:
    return heapq.nsmallest(SAMPLES, samples, key=lambda sample: (sample["hash"], sample["place"]))


def _commonest(reasons: dict[str, Dropped]) -> list[tuple[str, Dropped]]:
    return sorted(reasons.items(), key=lambda item: (-item[1].documents, item[0]))


def _counted(counts: Counter[str]) -> dict[str, int]:
    """Commonest first, and in one order whatever the order of counting."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
