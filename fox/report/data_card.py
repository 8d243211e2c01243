"""The data card of a corpus: what is in it, under which terms, what was done to it and what was left out, as the hub's README of a dataset.

What nothing recorded is not told. Names, reasons and addresses are foreign text and escaped; paths of the machine that made it stay there.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fox.artifacts import write_atomically
from fox.recipe.write import toml_page
from fox.report import markdown, quantities
from fox.report.funnel import Funnel, Reading, read_funnels
from fox.report.hub_metadata import front_matter
from fox.report.markdown import words
from fox.report.run_files import RunFiles, read_run
from fox.report.terms import recipe_as_stated, source_license, source_url

CARD = "README.md"

_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
          (1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"), (1e11, "10B<n<100B"), (1e12, "100B<n<1T"))  # fmt: skip
"""The hub's words for how many documents there are."""


def write_data_card(folder: Path, out: Path | None) -> Path:
    """Write the card of a run's corpus to `out`, or beside its documents; its path. Raises UserError where the run has no corpus."""
    funnels, manifest = read_funnels(folder)
    card = data_card(read_run(folder), funnels, {name: manifest.reading(name) for name in funnels})
    path = out or folder / CARD
    write_atomically(path, card.encode(errors="replace"))
    return path


def data_card(run: RunFiles, funnels: Mapping[str, Funnel], readings: Mapping[str, Reading]) -> str:
    """The card as Markdown."""
    sections = [
        front_matter(_metadata(run, funnels)),
        f"# {words(run.name)}",
        _summary(funnels),
        f"## What is in it\n\n{_sources(run, funnels)}",
        f"## Terms\n\n{_terms(funnels)}",
        *([f"## Languages\n\n{_languages(funnels)}"] if any(funnel.languages for funnel in funnels.values()) else []),
        f"## How it was made\n\n{_steps(run, funnels, readings)}",
        f"## What was left out\n\n{_left_out(funnels)}",
        f"## Before you use it\n\n{_cautions(run, funnels)}",
        f"## Making it again\n\n{_again(run)}",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(run: RunFiles, funnels: Mapping[str, Funnel]) -> dict[str, Any]:
    documents = sum(funnel.kept.documents for funnel in funnels.values())
    languages = Counter[str]()
    for funnel in funnels.values():
        languages.update(funnel.languages)
    return {
        "pretty_name": run.name,
        "task_categories": ["text-generation"],
        "tags": ["fox"],
        "language": [code for code, _ in languages.most_common(20)],
        "size_categories": [next((label for most, label in _SIZES if documents < most), "n>1T")],
        "configs": [{"config_name": name, "data_files": f"corpus/{name}/*.parquet"} for name in funnels],
    }


def _summary(funnels: Mapping[str, Funnel]) -> str:
    kept, read = (
        [sum(getattr(getattr(f, which), unit) for f in funnels.values()) for unit in ("documents", "bytes")]
        for which in ("kept", "read")
    )
    return (
        f"{quantities.exact(kept[0])} documents with {quantities.size(kept[1])} of text, of {quantities.exact(read[0])} that were read, from "
        f"{len(funnels)} source{'s' * (len(funnels) != 1)}. Each row has the document, its id (the first half of its SHA-256), where it was read, and what is known "
        "of it: address, title, date, language, terms."
    )


def _sources(run: RunFiles, funnels: Mapping[str, Funnel]) -> str:
    tokens = run.facts("data").sources
    head = ["source", "from", "documents", "text", "of those read", "training tokens", "held-out documents"]
    rows = []
    for name, funnel in funnels.items():
        of_shards = tokens.get(name)
        rows.append(
            [
                words(name),
                markdown.link(source_url(run, name)) or quantities.NONE,
                quantities.exact(funnel.kept.documents),
                quantities.size(funnel.kept.bytes),
                quantities.share(funnel.kept.documents, funnel.read.documents),
                quantities.exact(of_shards.train.tokens if of_shards else None),
                quantities.exact(of_shards.heldout.documents if of_shards else None),
            ]
        )
    return markdown.raw_table(head, rows, text_columns=2)


def _terms(funnels: Mapping[str, Funnel]) -> str:
    rows = [
        [words(name), words(terms), quantities.exact(count)]
        for name, funnel in funnels.items()
        for terms, count in Counter(funnel.licenses).most_common()
    ]
    told = markdown.raw_table(["source", "terms, as the document or its source states them", "documents"], rows, 2)
    if any("not stated" in funnel.licenses for funnel in funnels.values()):
        told += "\n\nWhere none are stated nobody has said that the documents may be used: that is for you to find out."
    return told


def _languages(funnels: Mapping[str, Funnel]) -> str:
    rows = [
        [words(name), words(code), quantities.exact(count), quantities.share(count, funnel.kept.documents)]
        for name, funnel in funnels.items()
        for code, count in Counter(funnel.languages).most_common(10)
    ]
    return markdown.raw_table(["source", "language", "documents", "share"], rows, 2)


def _steps(run: RunFiles, funnels: Mapping[str, Funnel], readings: Mapping[str, Reading]) -> str:
    recipe = run.recipe.recipe
    data = recipe.get("data") if isinstance(recipe.get("data"), dict) else {}
    assert isinstance(data, dict)
    sources = recipe.get("source") if isinstance(recipe.get("source"), dict) else {}
    assert isinstance(sources, dict)
    told = [
        "1. Files are read; the main text of web pages is found by Fox's rules on resiliparse's tree; damaged records are set aside."
    ]
    for name in funnels:
        settings = sources.get(name, {}).get("filter") if isinstance(sources.get(name), dict) else None
        if settings:
            told.append(f"1. Filter of {words(name)}: {words(_told(settings))}.")
    if kinds := data.get("mask_personal"):
        masked = Counter({kind: sum(r.masked.get(kind, 0) for r in readings.values()) for kind in kinds})
        told.append(f"1. Personal data are replaced by examples: {words(_told(dict(masked)))}.")
    if data.get("decontaminate"):
        documents = sum(d.documents for f in funnels.values() for d in f.dropped.get("evaluation", {}).values())
        told.append(
            "1. Documents with 13 words in a row of an evaluation's texts, or a shorter one as a whole, are left out "
            f"(arXiv 2005.14165, appendix C): {quantities.exact(documents)}."
        )
    for name, funnel in funnels.items():
        for best, moved in funnel.moved.items():
            number = quantities.exact(moved.documents)
            told.append(
                f"1. {number} documents of {words(name)}, the most like examples of what is wanted, are {words(best)}."
            )
    if duplicates := data.get("duplicates"):
        told.append(f"1. Copies are left out, of all sources the first stays: {words(_told(duplicates))}.")
    return "\n".join(told)


def _told(settings: Mapping[str, Any]) -> str:
    values = markdown.without_local_paths(dict(settings)).items()
    return ", ".join(
        f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in values if value not in ([], None)
    )


def _left_out(funnels: Mapping[str, Funnel]) -> str:
    rows = [
        [words(name), words(step), words(reason), quantities.exact(dropped.documents), quantities.size(dropped.bytes)]
        for name, funnel in funnels.items()
        for step, reasons in funnel.dropped.items()
        for reason, dropped in reasons.items()
    ]
    rows += [
        [words(name), words(step), f"lines: {words(reason)}", quantities.NONE, quantities.size(size)]
        for name, funnel in funnels.items()
        for step, cut in funnel.cut.items()
        for reason, size in cut.items()
    ]
    if not rows:
        return "Nothing."
    return markdown.raw_table(["source", "step", "reason", "documents", "text"], rows, 3)


def _cautions(run: RunFiles, funnels: Mapping[str, Funnel]) -> str:
    told = [
        "- Rules see the form of a text, not whether it is true, kind or lawful. Nobody has read it.",
        "- Personal data are found by their form: names, and numbers written in other ways, are there still.",
        "- Filters take more of some people's language than of others' (arXiv 2104.08758).",
    ]
    if not all(source_license(run, name) for name in funnels):
        told.append("- The terms of some sources are not stated as a whole: see above for those of their documents.")
    return "\n".join(told)


def _again(run: RunFiles) -> str:
    shown = markdown.without_local_paths(recipe_as_stated(run))
    page = toml_page(shown)
    digest = hashlib.sha256(page.encode(errors="replace")).hexdigest()
    manifest = run.manifests.get("corpus")
    told = [
        f"`fox corpus` with this recipe makes it of the same files, to the last bit. The recipe's SHA-256 is `{digest}`.",
        markdown.folded("The recipe, with every value", markdown.code(page, "toml")),
    ]
    if manifest:
        recorded = manifest.inputs.get("files")
        files = {name: str(digest) for name, digest in recorded.items()} if isinstance(recorded, dict) else {}
        told += markdown.hashes(files, "SHA-256 of each source's files, names and contents")
        told += markdown.hashes(manifest.outputs, "SHA-256 of the corpus' files")
    return "\n\n".join(told)
