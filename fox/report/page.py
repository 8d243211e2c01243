"""The report of a run: one HTML file that needs nothing but itself, and its charts as PNG files for a README.

What a run says (samples, names, values) is foreign text: the template escapes all of it, the charts are images in which
no script runs, and the page's own policy forbids scripts and the network.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fox.artifacts import folder_made_whole
from fox.errors import UserError
from fox.recipe.write import toml_value
from fox.report import quantities
from fox.report.html import icon_address, template
from fox.report.run_files import RunFiles, read_run
from fox.report.tables import (
    data_table,
    hashes,
    machine,
    packing_table,
    scores_table,
    seen_table,
    stages_table,
    steps_table,
)


@dataclass(frozen=True)
class Headline:
    """One figure that a reader looks for first."""

    figure: str
    meaning: str
    note: str = ""


@dataclass(frozen=True)
class ChartImage:
    """A chart on the page: one image for wide screens and one for phones."""

    name: str
    title: str
    caption: str
    full_width: bool
    address: str
    phone_address: str


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report/index.html` and `report/*.png`, whole or not at all; returns the HTML file's path.

    An unfinished run is shown as far as it got. Raises UserError where `run_dir` is no run or matplotlib is missing,
    and Failure where the disk is full.
    """
    try:
        from fox.report import charts
        from fox.report.style import chart_style, png, svg_address
    except ModuleNotFoundError as error:
        raise UserError(
            "fox report", problem=f"needs {error.name}, which isn't installed", mend="pip install 'foxlm[train]'"
        ) from None
    run = read_run(run_dir)
    top = headlines(run)
    images = []
    with folder_made_whole(run_dir / "report") as folder:
        with chart_style(font_size=11):
            for chart in charts.charts_of(run):
                wide = chart.figure(charts.FULL if chart.full_width else charts.HALF)
                addresses = svg_address(wide), svg_address(chart.figure(charts.PHONE))
                (folder / f"{chart.name}.png").write_bytes(png(wide))
                images.append(ChartImage(chart.name, chart.title, chart.caption, chart.full_width, *addresses))
        with chart_style(font_size=8.5):
            overview = charts.overview(run, run.name, [(headline.figure, headline.meaning) for headline in top])
            (folder / "overview.png").write_bytes(png(overview))
        (folder / "index.html").write_text(page(run, top, images), encoding="utf-8", errors="replace")
    return run_dir / "report" / "index.html"


def page(run: RunFiles, top: Sequence[Headline], images: Sequence[ChartImage]) -> str:
    """The HTML of the report."""
    training = [image for image in images if not image.name.startswith(("bits", "tuning"))]
    return template("page.html.jinja").render(
        run=run,
        summary=summary(run),
        begun=min((m.started for m in run.manifests.values() if m.started), default="").partition("T")[0],
        headlines=top,
        charts=[image for image in training if image.name.startswith("loss")]
        + [image for image in training if not image.name.startswith("loss")],
        tuning_charts=[image for image in images if image.name.startswith("tuning")],
        score_charts=[image for image in images if image.name.startswith("bits")],
        scores=scores_table(run.results, run.last_stage) if run.results else None,
        samples=run.results.samples if run.results else [],
        data=data_table(run),
        stages=stages_table(run),
        packing=packing_table(run),
        seen=seen_table(run),
        steps=steps_table(run),
        recipe_rows=[(key, _spelt(value), origin) for key, value, origin in run.recipe.rows],
        machine=machine(run),
        command=reproduce_command(run),
        hashes=hashes(run),
        icon=icon_address(),
    )


def headlines(run: RunFiles) -> list[Headline]:
    """The figures at the top, as far as the run has them."""
    found = []
    facts = run.facts("pretrain")
    if facts.parameters:
        found.append(Headline(quantities.count(facts.parameters), "parameters", quantities.exact(facts.parameters)))
    if tokens := _tokens(run, "pretrain"):
        tuned = _tokens(run, "tune")
        note = f"and {quantities.count(tuned)} of tuning" if tuned else ""
        found.append(Headline(quantities.count(tokens), "tokens trained on", note))
    if seconds := _seconds(run, "pretrain"):
        tuned = _seconds(run, "tune")
        note = f"and {quantities.duration(tuned)} of tuning" if tuned else ""
        threads = f", {facts.threads} threads" if facts.threads else ""
        found.append(Headline(quantities.duration(seconds), f"training time{threads}", note))
    if results := run.results:
        for source, score in list(results.bits_per_byte.get("base", {}).items())[:1]:
            bigram = results.kneser_ney_bits_per_byte.get(source)
            note = f"a Kneser-Ney bigram: {quantities.decimal(bigram)}" if bigram is not None else ""
            found.append(Headline(quantities.decimal(score), f"bits per byte, {source}", note))
        base, tuned_scores = (results.assistant_bits_per_byte.get(model, {}) for model in ("base", "tuned"))
        for source, score in list(tuned_scores.items())[:1]:
            note = f"before tuning: {quantities.decimal(base[source])}" if source in base else ""
            found.append(Headline(quantities.decimal(score), "bits per byte of replies", note))
        if results.replies and results.replies.chats:
            replies = results.replies
            known = quantities.share(replies.known_words, replies.words)
            note = f"{known} of their words are known" if replies.words else ""
            found.append(Headline(f"{replies.ended} of {replies.chats}", "replies end by themselves", note))
    return found


def summary(run: RunFiles) -> str:
    """The run in a few sentences; what isn't known yet isn't said."""
    facts, results = run.facts("pretrain"), run.results
    tokens, seconds = _tokens(run, "pretrain"), _seconds(run, "pretrain")
    what = f"A decoder of {quantities.count(facts.parameters)} parameters" if facts.parameters else "A decoder"
    sentences = []
    if tokens:
        stages = len(run.pretrain.bands) if run.pretrain else 0
        spent = [f"{stages} stages"] * (stages > 1) + [quantities.duration(seconds)] * bool(seconds)
        sentences.append(
            f"{what}, {f'begun from {Path(begun.name).name} and ' if (begun := facts.base_model) else ''}trained on "
            f"{quantities.count(tokens)} tokens"
            + (f" in {quantities.listed(spent)}" if spent else "")
            + (
                f" on {facts.threads} thread{'s' * (facts.threads != 1)} of {facts.cpu}"
                if facts.threads and facts.cpu
                else ""
            )
            + "."
        )
    if results and (base := results.bits_per_byte.get("base")):
        bigram, start = results.kneser_ney_bits_per_byte, results.bits_per_byte.get("start", {})
        told = [
            f"{quantities.decimal(score)} bits per byte of {source}"
            + (f" (before training {quantities.decimal(start[source])})" if source in start else "")
            + (f" (a Kneser-Ney bigram: {quantities.decimal(bigram[source])})" if source in bigram else "")
            for source, score in base.items()
        ]
        sentences.append(f"On text that it was not trained on, the base model needs {quantities.listed(told)}.")
    if results and (tuned := results.assistant_bits_per_byte.get("tuned")):
        before = results.assistant_bits_per_byte.get("base", {})
        told = [
            (f"from {quantities.decimal(before[source])} " if source in before else "")
            + f"to {quantities.decimal(score)} bits per byte"
            + (f" of {source}" if len(tuned) > 1 else "")
            for source, score in tuned.items()
        ]
        sentences.append(f"Tuning brought the assistant's words {quantities.listed(told)}.")
    if results and (replies := results.replies) and replies.chats:
        sentences.append(
            f"Of {replies.chats} replies to held-out chats {replies.ended} end by themselves"
            + (
                f", and {quantities.share(replies.known_words, replies.words)} of their words are known ones."
                if replies.words
                else "."
            )
        )
    return " ".join(sentences)


def reproduce_command(run: RunFiles) -> str:
    """The command that does this run again: its recipe's file, and each `-o`; empty where the recipe isn't known."""
    files = Counter(
        file
        for _, _, origin in run.recipe.rows
        for file, _, line in [origin.rpartition(":")]
        if file and line.isdigit()
    )
    if not files:
        return ""
    overrides = [
        f"-o {shlex.quote(f'{key}={_as_toml(value)}')}" for key, value, origin in run.recipe.rows if origin == "-o"
    ]
    return " ".join(["fox run", shlex.quote(files.most_common(1)[0][0]), *overrides])


def _as_toml(value: Any) -> str:
    """`value` as `-o` reads it back: bare text where that can't be taken for something else."""
    if (
        isinstance(value, str)
        and re.fullmatch(r"[A-Za-z~][\w./:~-]*", value)
        and value not in ("true", "false", "inf", "nan")
    ):
        return value
    return toml_value(value)


def _spelt(value: Any) -> str:
    return quantities.NONE if value is None else json.dumps(value, ensure_ascii=False)


def _tokens(run: RunFiles, step: str) -> float | None:
    metrics = run.pretrain if step == "pretrain" else run.tune
    return run.facts(step).tokens or (metrics.rows[-1].tokens if metrics else None)


def _seconds(run: RunFiles, step: str) -> float | None:
    metrics = run.pretrain if step == "pretrain" else run.tune
    seconds = run.facts(step).seconds_training or (metrics.rows[-1].seconds if metrics else None)
    return seconds if seconds and seconds == seconds else None
