"""The model card's part on data: what each source held and gave, what was kept out, and what the training read of it."""

from __future__ import annotations

from collections import Counter

from fox.report import markdown, quantities
from fox.report.about import About
from fox.report.markdown import words
from fox.report.run_files import Metrics, RunFiles, SourceFacts
from fox.report.terms import source_license, source_url


def data_section(about: About, run: RunFiles) -> str:
    """A table of the sources, and what there is to know beside it."""
    sources = run.facts("data").sources
    if not sources:
        return "Nothing is recorded of it."
    seen = tokens_drawn(about, run)
    files = run.manifests["corpus" if "corpus" in run.manifests else "data"].inputs.get("files")
    head = ["source", "licence", "from", "documents", "duplicates dropped", "unusable", "training tokens",
            "training bytes", "tokens read in training", "held-out documents"]  # fmt: skip
    rows, digests = [], {}
    for name, facts in sources.items():
        rows.append(
            [
                words(name),
                words(source_license(run, name) or "not stated"),
                markdown.link(source_url(run, name)) or quantities.NONE,
                quantities.exact(facts.documents),
                quantities.exact(facts.duplicates),
                quantities.exact(facts.bad),
                quantities.exact(facts.train.tokens),
                quantities.exact(facts.train.bytes),
                quantities.exact(seen.get(name)),
                quantities.exact(facts.heldout.documents),
            ]
        )
        digest = files.get(name) if isinstance(files, dict) else None
        if isinstance(digest, str):
            digests[name] = digest
    told = [markdown.raw_table(head, rows, text_columns=3), *_cleaned(list(sources.values()))]
    if not all(source_license(run, name) for name in sources):
        told.append(
            "Where a licence is not stated, the records name none for these documents: ask before you rely on one."
        )
    return "\n\n".join([*told, *markdown.hashes(digests, "SHA-256 of each source's files, names and contents")])


def _cleaned(sources: list[SourceFacts]) -> list[str]:
    """What was done against memories of evaluations and of people."""
    told = []
    if questions := sum(facts.with_questions for facts in sources):
        told.append(f"{quantities.exact(questions)} documents that held texts of evaluation files were left out.")
    if masked := sum(facts.masked for facts in sources):
        told.append(f"{quantities.exact(masked)} personal data (addresses, numbers) were replaced by examples.")
    return told


def its_training(about: About, run: RunFiles) -> list[Metrics]:
    """What this model has gone through: a base model was not tuned, though its run went on."""
    return [metrics for metrics in (run.pretrain, run.tune if about.part != "base" else None) if metrics]


def tokens_drawn(about: About, run: RunFiles) -> Counter[str]:
    """The tokens that its training read of each source."""
    drawn: Counter[str] = Counter()
    for metrics in its_training(about, run):
        for row in metrics.rows:
            drawn.update(row.mix)
    return drawn
