"""The charts of a report: which there are, what is said of them, and the one picture that shows the whole run.

Each is drawn for the width it is shown at, so that its letters keep their size on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy

from fox.report.plots import (
    MOST_SOURCES,
    bits_limits,
    draw_bits_of,
    draw_chunk_length,
    draw_epochs,
    draw_gradient_norm,
    draw_learning_rate,
    draw_loss,
    draw_loss_by_source,
    draw_machine,
    draw_mixture,
)
from fox.report.run_files import Metrics, Results, RunFiles
from fox.report.style import GUTTER, MODEL, MUTED, clip

FULL, HALF, PHONE = 960, 470, 350
"""Widths of a chart in points; a point is a CSS pixel on the page."""


@dataclass(frozen=True)
class Chart:
    """One chart: `draw` fills an empty figure of any of the widths."""

    name: str
    title: str
    caption: str
    draw: Callable[[Figure], None]
    full_width: bool = False
    height: float = 275
    phone_height: float = 255

    def figure(self, width: float) -> Figure:
        """The chart, `width` points wide."""
        figure = Figure(figsize=(width / 72, (self.phone_height if width == PHONE else self.height) / 72))
        self.draw(figure)
        return figure


def charts_of(run: RunFiles) -> list[Chart]:
    """The charts that the run's files have the numbers for, in the order of the page."""
    charts = []
    pretrain, tune, results = run.pretrain, run.tune, run.results
    if pretrain and _has(pretrain, "loss"):
        charts.append(
            Chart(
                "loss-by-tokens",
                "Loss over tokens",
                "Cross-entropy of the training text in nats per token: each step faint, the mean of neighbouring steps "
                "strong. A jump where a stage begins comes from its other text and longer chunks.",
                lambda figure: draw_loss(_whole(figure), pretrain, "tokens"),
                full_width=True,
                height=330,
            )
        )
        if _has(pretrain, "seconds"):
            charts.append(
                Chart(
                    "loss-by-time",
                    "Loss over time",
                    "The same loss by training time. Pauses, checkpoints and evaluation are not counted.",
                    lambda figure: draw_loss(_whole(figure), pretrain, "seconds"),
                )
            )
    if pretrain and len(pretrain.by_source("loss_by_source", np.nan)) > 1:
        charts.append(
            Chart(
                "loss-by-source",
                "Loss by source",
                "The mean of neighbouring steps, by what the tokens came from. Sources are not equally hard: compare each with itself.",
                lambda figure: draw_loss_by_source(_whole(figure, right=122), pretrain),
            )
        )
    if pretrain and _has(pretrain, "gradient_norm"):
        charts.append(
            Chart(
                "gradient-norm",
                "Gradient norm",
                "Before larger ones were scaled down to the recipe's clip_norm.",
                lambda figure: draw_gradient_norm(_whole(figure), pretrain),
            )
        )
    if pretrain and _has(pretrain, "learning_rate"):
        charts.append(
            Chart(
                "learning-rate",
                "Learning rate",
                "Warm-up, stable, decay, over all stages together.",
                lambda figure: draw_learning_rate(_whole(figure), pretrain),
            )
        )
    if pretrain and pretrain.by_source("chunk_length", np.nan):
        charts.append(
            Chart(
                "chunk-length",
                "Chunk length",
                "How many tokens see each other, by source; lines of equal height are drawn side by side.",
                lambda figure: draw_chunk_length(_whole(figure, right=122), pretrain),
            )
        )
    if pretrain and pretrain.by_source("mix", 0.0):
        charts.append(
            Chart(
                "mixture",
                "Mixture",
                "Each source's share of the tokens that were drawn.",
                lambda figure: draw_mixture(_whole(figure, right=122), pretrain),
            )
        )
    if pretrain and pretrain.by_source("epoch", np.nan):
        charts.append(
            Chart(
                "epochs",
                "Epochs",
                "How often each source has been seen.",
                lambda figure: draw_epochs(_whole(figure, right=122), pretrain),
            )
        )
    trainings = [training for training in (pretrain, tune) if training]
    if any(_has(training, "tokens_per_second") for training in trainings):
        charts.append(
            Chart(
                "speed",
                "Speed",
                "Tokens trained on per second" + (", pre-training and then tuning." if pretrain and tune else "."),
                lambda figure: draw_machine(
                    _whole(figure), trainings, "tokens_per_second", "tokens a second, thousands", 1e3
                ),
            )
        )
    if any(_has(training, "share_of_peak") for training in trainings):
        charts.append(
            Chart(
                "share-of-peak",
                "Share of the machine's peak",
                "Six operations for each parameter and token, of what the machine's matrix products reach, measured as training began.",
                lambda figure: draw_machine(_whole(figure), trainings, "share_of_peak", "% of matrix peak", 0.01),
            )
        )
    if any(_has(training, "memory_bytes") for training in trainings):
        charts.append(
            Chart(
                "memory",
                "Peak memory so far",
                "The most that the training process had held up to each step"
                + (", pre-training and then tuning." if pretrain and tune else "."),
                lambda figure: draw_machine(_whole(figure), trainings, "memory_bytes", "peak memory, GB", 1e9),
            )
        )
    if results and (sources := scored_sources(results)):
        panels = min(len(sources), MOST_SOURCES)
        charts.append(
            Chart(
                "bits-per-byte",
                "Bits per byte on held-out text",
                " ".join(filter(None, _about_bits_per_byte(results, run.last_stage))),
                lambda figure: draw_bits_per_byte(figure, results),
                full_width=True,
                height=30 + 250 * -(-panels // 3),
                phone_height=235 * panels,
            )
        )
    if tune and _has(tune, "loss"):
        charts.append(
            Chart(
                "tuning-loss",
                "Loss",
                "On the assistant's tokens only, in nats per token.",
                lambda figure: draw_loss(_whole(figure), tune, "tokens"),
            )
        )
    if tune and _has(tune, "learning_rate"):
        charts.append(
            Chart(
                "tuning-learning-rate",
                "Learning rate",
                "Its own warm-up and decay.",
                lambda figure: draw_learning_rate(_whole(figure), tune),
            )
        )
    return charts


def overview(run: RunFiles, title: str, headlines: Sequence[tuple[str, str]]) -> Figure:
    """The run in one picture of 1600 x 1000 pixels, for the top of a README. `headlines` are (figure, what it is)."""
    width, height, margin = 720, 450, 22
    figure = Figure(figsize=(width / 72, height / 72))

    def panel(title: str, left: float, right: float, bottom: float, top: float, title_lift: float = 37) -> Axes:
        left += GUTTER
        figure.text((left - GUTTER) / width, (top + title_lift) / height, title, fontsize=10, fontweight="bold")
        return figure.add_axes((left / width, bottom / height, (right - left) / width, (top - bottom) / height))

    figure.text(margin / width, 1 - 38 / height, clip(title, 20), fontsize=20, fontweight="bold")
    for i, (number, meaning) in enumerate(headlines[:4]):
        x = (212 + i * 130) / width
        figure.text(x, 1 - 29 / height, number, fontsize=13, fontweight="bold", color=MODEL)
        figure.text(x, 1 - 42 / height, clip(meaning, 28), fontsize=7.5, color=MUTED)

    results = run.results
    sources = scored_sources(results)[:2] if results else []
    end = 480 if sources else width - margin
    middle = (margin + end) / 2
    if run.pretrain and _has(run.pretrain, "loss"):
        draw_loss(panel("Loss", margin, end - 38, 234, 338), run.pretrain, "tokens")
    if run.pretrain and run.pretrain.by_source("chunk_length", np.nan):
        draw_chunk_length(panel("Chunk length", margin, middle - 80, 42, 140), run.pretrain, name_limit=10)
    if run.pretrain and run.pretrain.by_source("mix", 0.0):
        draw_mixture(panel("Mixture", middle + 8, end - 66, 42, 140), run.pretrain, name_limit=10)
    for source, bottom, top in zip(sources, (234, 42), (353, 155), strict=False):
        assert results is not None
        axes = panel(f"Held-out {clip(source)}", end + 18, width - margin, bottom, top, title_lift=22)
        draw_bits_of(axes, results, source, bits_limits(results, sources), narrow=True)
    return figure


def draw_bits_per_byte(figure: Figure, results: Results) -> None:
    """A panel for each source: the model after each stage, and the bigram's dashed line."""
    sources = scored_sources(results)[:MOST_SOURCES]
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    columns = 1 if width < 600 else min(3, len(sources))
    rows = -(-len(sources) // columns)
    cell_width, cell_height = width / columns, height / rows
    for i, source in enumerate(sources):
        left = cell_width * (i % columns) + GUTTER
        bottom = height - cell_height * (i // columns + 1) + 58
        axes = figure.add_axes(
            (left / width, bottom / height, (cell_width - GUTTER - 22) / width, (cell_height - 58 - 50) / height)
        )
        axes.text(
            0,
            1,
            clip(source, 30),
            fontweight="bold",
            transform=offset_copy(axes.transAxes, figure, -GUTTER, 28, units="points"),
        )
        draw_bits_of(axes, results, source, bits_limits(results, sources), narrow=cell_width < 400)


def scored_sources(results: Results) -> list[str]:
    """The sources that any model was scored on, in the order of the results."""
    return list(dict.fromkeys(source for scores in results.bits_per_byte.values() for source in scores))


def _about_bits_per_byte(results: Results, last_stage: str) -> Iterator[str]:
    yield "After each stage, on text that no stage was trained on; lower is better."
    if last_stage in results.bits_per_byte:
        yield "\u201cbase\u201d is the mean of late checkpoints."
    elif "base" in results.bits_per_byte:
        yield f"\u201cbase\u201d is the model after the last stage{f', {last_stage}' if last_stage else ''}."
    if "averaged" in results.bits_per_byte:
        yield "\u201caveraged\u201d is the mean of late checkpoints, which was worse and was not taken."
    if results.kneser_ney_bits_per_byte:
        yield "The dashed line is a Kneser-Ney bigram's."


def _has(metrics: Metrics, column: str) -> bool:
    return bool(np.isfinite(metrics.column(column)).any())


def _whole(figure: Figure, right: float = 58) -> Axes:
    """One chart on the whole figure; `right` points are left for names."""
    width, height = figure.get_figwidth() * 72, figure.get_figheight() * 72
    left, bottom, top = GUTTER, 46, 42
    return figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
