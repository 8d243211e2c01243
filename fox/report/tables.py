"""The tables of a report: what was measured, what the data held, what each stage did, and on what machine."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from fox.report import quantities
from fox.report.run_files import STEPS, Metrics, Results, RunFiles


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first `text_columns` of them are words, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def scores_table(results: Results, last_stage: str) -> Table | None:
    """Bits per byte by model and source, with the bigram and the size of the held-out text.

    The base model is what the last stage left, so that stage has no row of its own; where it has one, the base model is the mean of
    late checkpoints.
    """
    base = f"base model, after stage {last_stage}" if last_stage else "base model"
    if last_stage in results.bits_per_byte:
        base = "base model, the mean of late checkpoints"

    def named(model: str) -> str:
        averaged = "mean of late checkpoints, not taken"
        known = {"start": "the model that it started from", "averaged": averaged, "base": base, "tuned": "tuned model"}
        return known.get(model, f"after stage {model}")

    replies = results.assistant_bits_per_byte
    tables = [
        *((named(model), scores) for model, scores in results.bits_per_byte.items()),
        *((f"{named(model)}: replies alone", scores) for model, scores in replies.items() if scores),
        *([("Kneser-Ney bigram", results.kneser_ney_bits_per_byte)] if results.kneser_ney_bits_per_byte else []),
    ]
    sources = list(dict.fromkeys(source for _, scores in tables for source in scores))
    if not sources:
        return None
    rows = [[name, *(quantities.decimal(scores.get(source), 3) for source in sources)] for name, scores in tables]
    if results.heldout:
        sizes = [results.heldout[source].bytes if source in results.heldout else None for source in sources]
        rows.append(["held-out text", *(quantities.size(size) for size in sizes)])
    return Table(["", *sources], rows)


def data_table(run: RunFiles) -> Table | None:
    """What each source held and gave."""
    sources = run.facts("data").sources
    if not sources:
        return None
    head = [
        "source",
        "documents",
        "duplicates",
        "unusable",
        "train tokens",
        "train text",
        "held out",
        "bytes per token",
    ]
    rows = [
        [
            name,
            quantities.exact(facts.documents),
            quantities.exact(facts.duplicates),
            quantities.exact(facts.bad),
            quantities.count(facts.train.tokens),
            quantities.size(facts.train.bytes),
            quantities.size(facts.heldout.bytes),
            quantities.decimal(facts.bytes_per_token),
        ]
        for name, facts in sources.items()
    ]
    for title, counts in (  # of few runs, and then of all their sources
        ("with questions", [facts.with_questions for facts in sources.values()]),
        ("personal data masked", [facts.masked for facts in sources.values()]),
    ):
        if any(counts):
            head.insert(4, title)
            for row, count in zip(rows, counts, strict=True):
                row.insert(4, quantities.exact(count))
    return Table(head, rows)


@dataclass(frozen=True)
class StageFacts:
    """What one stage of training did, by its metrics. `drawn` are tokens by source, most first; what isn't known is NaN."""

    name: str
    chunk_lengths: dict[str, float]
    drawn: dict[str, float]
    steps: int
    tokens: float
    peak_learning_rate: float
    last_loss: float
    seconds: float

    @property
    def chunks(self) -> str:
        """One length, or one for each source."""
        lengths = self.chunk_lengths
        if len(set(lengths.values())) == 1:
            return f"{next(iter(lengths.values())):.0f}"
        return quantities.listed([f"{source} {length:.0f}" for source, length in lengths.items()]) or quantities.NONE

    @property
    def mixture(self) -> str:
        """The shares of the six sources that gave most."""
        total = sum(self.drawn.values())
        told = [f"{source} {quantities.share(part, total)}" for source, part in list(self.drawn.items())[:6]]
        return quantities.listed(told) or quantities.NONE


def stages_of(metrics: Metrics, fallback: str) -> list[StageFacts]:
    """The stages of one training; `fallback` is the name of one whose metrics name none."""
    return [_stage_facts(metrics, band.first, band.end, band.name or fallback) for band in metrics.bands]


def _stage_facts(metrics: Metrics, first: int, end: int, name: str) -> StageFacts:
    rows = metrics.rows[first:end]
    drawn: Counter[str] = Counter()
    lengths: dict[str, float] = {}
    for row in rows:
        drawn.update(row.mix)
        lengths.update(row.chunk_length)
    last = [row.loss for row in rows[-max(1, len(rows) // 20) :]]
    rates = [row.learning_rate for row in rows if math.isfinite(row.learning_rate)]
    return StageFacts(
        name=name,
        chunk_lengths=lengths,
        drawn=dict(drawn.most_common()),
        steps=len(rows),
        tokens=rows[-1].tokens - (metrics.rows[first - 1].tokens if first else 0),
        peak_learning_rate=max(rates, default=math.nan),
        last_loss=sum(last) / len(last),
        seconds=rows[-1].seconds - (metrics.rows[first - 1].seconds if first else 0),
    )


def stages_table(run: RunFiles) -> Table | None:
    """What each stage of training did, by its metrics."""
    stages = [
        *(stages_of(run.pretrain, "pre-training") if run.pretrain else []),
        *(stages_of(run.tune, "tuning") if run.tune else []),
    ]
    rows = [
        [
            stage.name,
            stage.chunks,
            stage.mixture,
            quantities.exact(stage.steps),
            quantities.count(stage.tokens),
            quantities.exact(stage.tokens / stage.steps),
            quantities.decimal(stage.last_loss),
            quantities.duration(stage.seconds),
        ]
        for stage in stages
    ]
    head = ["stage", "chunk length", "mixture", "steps", "tokens", "tokens a step", "loss at its end", "time"]
    return Table(head, rows, text_columns=3) if rows else None


def packing_table(run: RunFiles) -> Table | None:
    """How each source's documents lie in the chunks of each stage, and how often the source is seen in the whole training."""
    rows = [
        [
            lane.stage,
            lane.source,
            quantities.exact(lane.length),
            quantities.exact(lane.bins),
            quantities.NONE if lane.waste is None else f"{100 * lane.waste:.2f}\N{NO-BREAK SPACE}%",
            quantities.exact(lane.documents_whole),
            quantities.exact(lane.documents_cut),
            quantities.exact(lane.documents_left_over),
            quantities.decimal(facts.epochs.get(lane.source)),
        ]
        for facts in (run.facts("pretrain"), run.facts("tune"))
        for lane in facts.packing
    ]
    head = ["stage", "source", "chunk length", "chunks", "padding", "whole", "cut", "left for later", "epochs in all"]
    return Table(head, rows, text_columns=2) if rows else None


def seen_table(run: RunFiles) -> Table | None:
    """How much of each source's text a training has read never, once, twice and more often."""
    rows = [
        [
            step,
            source,
            *(f"{100 * share:.1f}\N{NO-BREAK SPACE}%" for share in (*(*shares, 0, 0, 0)[:3], sum(shares[3:]))),
        ]
        for step in ("pretrain", "tune")
        for source, shares in run.facts(step).seen.items()
    ]
    head = ["step", "source", "never read", "once", "twice", "more often"]
    return Table(head, rows, text_columns=2) if rows else None


def steps_table(run: RunFiles) -> Table | None:
    """When each step of the run began, and how long it took in all."""
    rows = [
        [
            step,
            (manifest.started or quantities.NONE).replace("T", " ").replace("Z", " UTC"),
            quantities.duration(manifest.seconds),
        ]
        for step, manifest in run.manifests.items()
    ]
    return Table(["step", "last started", "time"], rows, text_columns=2) if rows else None


def machine(run: RunFiles) -> list[tuple[str, str]]:
    """What the run ran on and with: name and value."""
    facts = {step: run.facts(step) for step in STEPS}

    def values(name: str) -> str:
        return ", ".join(dict.fromkeys(str(value) for fact in facts.values() if (value := getattr(fact, name))))

    peak = max((fact.peak_memory_bytes for fact in facts.values() if fact.peak_memory_bytes), default=None)
    told = [
        ("processor", values("cpu")),
        ("instruction set", values("instruction_set")),
        ("threads", values("threads")),
        ("precision of products", values("precision")),
        ("peak memory", quantities.size(peak) if peak else ""),
        ("torch", values("torch")),
        ("fox", ", ".join(dict.fromkeys(m.fox for m in run.manifests.values() if m.fox))),
        ("seed", str(run.recipe.recipe.get("seed", ""))),
    ]
    return [(name, value) for name, value in told if value]


def hashes(run: RunFiles) -> list[tuple[str, str, str, str]]:
    """Step, `read` or `made`, name and SHA-256. What a step read as an earlier one made it has no row of its own."""
    rows: list[tuple[str, str, str, str]] = []
    made: set[tuple[str, str]] = set()
    for step, manifest in run.manifests.items():
        rows += [(step, "read", *found) for found in _hashes_within(manifest.inputs) if found not in made]
        rows += [(step, "made", *found) for found in manifest.outputs.items()]
        made |= manifest.outputs.items()
    return rows


def _hashes_within(inputs: dict[str, JsonValue]) -> Iterator[tuple[str, str]]:
    """The names and hashes in a step's inputs, however deep. The rest are the recipe's values, which it shows itself."""
    for name, value in inputs.items():
        if isinstance(value, dict):
            yield from _hashes_within(value)
        elif isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
            yield name, value
