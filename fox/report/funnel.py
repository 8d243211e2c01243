"""What became of a corpus' documents, step by step and reason by reason, with samples: one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from fox.artifacts import write_atomically
from fox.errors import Failure, UserError
from fox.report import quantities
from fox.report.html import icon_address, template
from fox.report.run_files import Lenient

PAGE = "corpus.html"

MOST_ROWS = 12
"""Of languages, licences and the like; the others are one row."""


class Count(Lenient):
    documents: int = 0
    bytes: int = 0


class Dropped(Count):
    samples: list[dict[str, str]] = Field(default=[])


class Funnel(Lenient):
    """`corpus/funnel.json`, of one source."""

    read: Count
    kept: Count
    moved: dict[str, Count] = Field(default={})
    dropped: dict[str, dict[str, Dropped]] = Field(default={})
    cut: dict[str, dict[str, int]] = Field(default={})
    licenses: dict[str, int] = Field(default={})
    languages: dict[str, int] = Field(default={})


class Scored(Lenient):
    """A document, to look at."""

    score: float
    place: str = ""
    url: str = ""
    text: str = ""


class Ranked(Lenient):
    """What became of the documents of one source by their scores."""

    best: str
    documents: int = 0
    threshold: float
    lowest: float
    highest: float
    bars: list[int] = Field(default=[])
    first: list[Scored] = Field(default=[])
    last: list[Scored] = Field(default=[])


class Learnt(Lenient):
    """How well the score tells apart examples that it has not seen."""

    auc: float = 0.0
    accuracy: float = 0.0
    examples: int = 0


class Ranking(Lenient):
    """`corpus/quality.json`, where the best documents were moved."""

    held_out: Learnt = Learnt()
    examples: dict[str, int] = Field(default={})
    sources: dict[str, Ranked] = Field(default={})


class Reading(Lenient):
    """What the manifest says of a source's files."""

    bad: dict[str, int] = Field(default={})
    left_out: dict[str, int] = Field(default={})
    masked: dict[str, int] = Field(default={})


class Manifest(Lenient):
    """`manifests/corpus.json`, as far as the page tells of it."""

    class Facts(Lenient):
        class OfSource(Lenient):
            reading: Reading = Reading()

        sources: dict[str, OfSource] = Field(default={})
        seconds: dict[str, dict[str, float]] = Field(default={})
        """By round and block (fox/data/corpus/seconds.py)."""

    facts: Facts = Facts()

    def reading(self, source: str) -> Reading:
        of_source = self.facts.sources.get(source)
        return of_source.reading if of_source else Reading()


class Funnels(Lenient):
    sources: dict[str, Funnel]


@dataclass(frozen=True)
class Figure:
    figure: str
    meaning: str
    note: str


def read_funnels(run: Path) -> tuple[dict[str, Funnel], Manifest]:
    """What became of each source's documents, and what the manifest says beside. Raises UserError where the run has no corpus, Failure where what it says
    of it is damaged."""
    path = run / "corpus/funnel.json"
    try:
        funnels = Funnels.model_validate_json(b'{"sources": ' + path.read_bytes() + b"}").sources
        manifest = Manifest.model_validate_json((run / "manifests/corpus.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        mend = "Make one: `fox corpus RECIPE`, with a [data.executor] table in the recipe."
        raise UserError("RUN", str(run), problem="has no corpus", mend=mend) from None
    except ValidationError as error:
        raise _not_ours(path, error) from None
    return funnels, manifest


def _ranking(path: Path) -> Ranking:
    try:
        return Ranking.model_validate_json(path.read_bytes()) if path.exists() else Ranking()
    except ValidationError as error:
        raise _not_ours(path, error) from None


def _not_ours(path: Path, error: ValidationError) -> Failure:
    first = error.errors(include_url=False, include_input=False)[0]
    return Failure(f"{path}: is not as Fox writes it ({first['msg']}). Make the corpus again: --redo corpus.")


def write_funnel(run: Path) -> Path:
    """Write `run/corpus.html`; its path. Raises as `read_funnels`."""
    funnels, manifest = read_funnels(run)
    ranking = _ranking(run / "corpus/quality.json")
    page = template("funnel.html.jinja").render(
        name=run.resolve().name,
        icon=icon_address(),
        headlines=_headlines(funnels),
        times=_times(manifest.facts.seconds),
        ranking=_learnt(ranking),
        sources=[
            _source(name, funnel, manifest.reading(name)) | _scores(ranking.sources.get(name))
            for name, funnel in funnels.items()
        ],
    )
    write_atomically(run / PAGE, page.encode(errors="replace"))
    return run / PAGE


def _headlines(funnels: Mapping[str, Funnel]) -> list[Figure]:
    arrived = {to for funnel in funnels.values() for to in funnel.moved}  # their documents were read elsewhere
    read = sum(funnel.read.documents for name, funnel in funnels.items() if name not in arrived)
    kept = sum(funnel.kept.documents for funnel in funnels.values())
    size = sum(funnel.kept.bytes for funnel in funnels.values())
    reasons = Counter(
        {
            f"{step}: {reason}": dropped.documents
            for funnel in funnels.values()
            for step, found in funnel.dropped.items()
            for reason, dropped in found.items()
        }
    )
    first = reasons.most_common(1)
    return [
        Figure(quantities.count(kept), "documents kept", f"of {quantities.count(read)} read"),
        Figure(quantities.size(size), "of text", f"in {len(funnels)} source{'s' * (len(funnels) != 1)}"),
        Figure(quantities.count(read - kept), "documents dropped", f"most by {first[0][0]}" if first else ""),
    ]


def _source(name: str, funnel: Funnel, reading: Reading) -> dict[str, Any]:
    lists = [
        ("Languages", funnel.languages, quantities.count),
        ("Licences", funnel.licenses, quantities.count),
        ("Records that are no documents", reading.left_out, quantities.count),
        ("Bad records, set aside", reading.bad, quantities.count),
        ("Personal data masked", reading.masked, quantities.count),
        *((f"Cut from documents: {step}", cut, quantities.size) for step, cut in funnel.cut.items()),
    ]
    return {
        "name": name,
        "steps": _steps(funnel),
        "reasons": [
            {
                "step": step,
                "reason": reason,
                "documents": quantities.count(dropped.documents),
                "share": quantities.share(dropped.documents, funnel.read.documents),
                "bytes": quantities.size(dropped.bytes),
                "samples": dropped.samples,
            }
            for step, reasons in funnel.dropped.items()
            for reason, dropped in reasons.items()
        ],
        "lists": [
            {"title": title, "rows": [(label, show(number)) for label, number in _most(counts).items()]}
            for title, counts, show in lists
            if counts
        ],
    }


def _times(seconds: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, str, str]]:
    """(round, block, its time, its share of all), in the order of the work."""
    whole = sum(of_block for blocks in seconds.values() for of_block in blocks.values())
    return [
        (name, block, quantities.duration(of_block), quantities.share(of_block, whole))
        for name, blocks in seconds.items()
        for block, of_block in blocks.items()
    ]


def _learnt(ranking: Ranking) -> str:
    """A sentence on the score; nothing where there is none."""
    if not ranking.sources:
        return ""
    good, ordinary = (quantities.count(ranking.examples.get(kind, 0)) for kind in ("good", "ordinary"))
    held_out = ranking.held_out
    return (
        f"Learnt from {good} good and {ordinary} ordinary examples. Of {quantities.count(held_out.examples)} others, it has a good one above an ordinary one "
        f"{held_out.auc:.1%} of the time, and {held_out.accuracy:.1%} of both kinds on their side of 0."
    )


def _scores(ranked: Ranked | None) -> dict[str, Any]:
    """The scores of a ranked source as bars, and the documents at both ends."""
    if ranked is None:
        return {"scores": None}
    width = (ranked.highest - ranked.lowest) / max(1, len(ranked.bars))
    most = max(ranked.bars, default=0)
    bars = [
        {
            "height": round(100 * count / max(1, most), 2),
            "is_moved": ranked.lowest + width * (at + 1) > ranked.threshold,
            "told": f"{ranked.lowest + width * at:.2f} to {ranked.lowest + width * (at + 1):.2f}: {quantities.count(count)}",
        }
        for at, count in enumerate(ranked.bars)
    ]
    ends = (("The best", ranked.first), ("The last", ranked.last))
    return {
        "scores": {
            "bars": bars,
            "lowest": f"{ranked.lowest:.2f}",
            "highest": f"{ranked.highest:.2f}",
            "told": f"from {ranked.threshold:.2f} on they were moved to {ranked.best}",
            "ends": [{"title": title, "samples": samples} for title, samples in ends],
        }
    }


def _steps(funnel: Funnel) -> list[dict[str, Any]]:
    """How much is left behind each step."""
    whole = max(1, funnel.read.documents)
    left, size = funnel.read.documents, funnel.read.bytes
    steps = [_step("read", left, left, size, whole)]
    for step, reasons in funnel.dropped.items():
        before = left
        left -= sum(dropped.documents for dropped in reasons.values())
        size -= sum(dropped.bytes for dropped in reasons.values())
        steps.append(_step(step, before, left, size, whole))
    for to, moved in funnel.moved.items():
        before = left
        left -= moved.documents
        size -= moved.bytes
        steps.append(_step(f"moved to {to}", before, left, size, whole))
    steps.append(_step("kept", left, funnel.kept.documents, funnel.kept.bytes, whole))
    return steps


def _step(label: str, before: int, left: int, size: int, whole: int) -> dict[str, Any]:
    return {
        "label": label,
        "before_percent": round(100 * before / whole, 2),
        "left_percent": round(100 * left / whole, 2),
        "left": quantities.count(left),
        "bytes": quantities.size(size),
        "lost": quantities.count(before - left) if before > left else "",
    }


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    most = dict(Counter(counts).most_common(MOST_ROWS))
    if rest := sum(counts.values()) - sum(most.values()):
        most[f"{len(counts) - len(most)} others"] = rest
    return most
