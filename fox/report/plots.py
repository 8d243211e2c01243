"""How each kind of chart is drawn on a pair of axes, wherever these are: on the page, on a phone, in the overview."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import BboxBase, blended_transform_factory, offset_copy

from fox.report.quantities import decimal
from fox.report.run_files import Band, Column, Metrics, Results
from fox.report.style import (
    BASELINE,
    GUTTER,
    INK,
    MODEL,
    MUTED,
    OTHERS,
    RULE,
    SHADE,
    SOURCES,
    SURFACE,
    clip,
    label_right,
)

MOST_SOURCES = len(SOURCES)
_MOST_POINTS = 1200


@dataclass(frozen=True)
class Stretch:
    """Where a stage lies on an axis."""

    name: str
    start: float
    end: float


def draw_loss(axes: Axes, metrics: Metrics, along: str) -> None:
    """Loss along `tokens` or `seconds`: raw and smoothed, over the shaded stages."""
    x, stretches = _along(axes, metrics, along)
    loss = metrics.column("loss")
    smooth = smoothed(loss, metrics.bands)
    axes.plot(*thinned(x, loss), color=MODEL, alpha=0.28, linewidth=0.8)
    axes.plot(*thinned(x, smooth), color=MODEL)
    finite = loss[np.isfinite(loss)]
    room = 0.06 * (finite.max() - finite.min() or 1)
    axes.set_ylim(finite.min() - room, finite.max() + room)
    _name_y(axes, "loss, nats per token", stretches)
    last = smooth[np.isfinite(smooth)][-1]
    label_right(axes, [(last, decimal(last), MODEL)])


def draw_loss_by_source(axes: Axes, metrics: Metrics, name_limit: int = 10) -> None:
    """Each source's loss over tokens, smoothed. A source that a stage leaves out has a gap there."""
    x, stretches = _along(axes, metrics, "tokens")
    columns = metrics.by_source("loss_by_source", np.nan)
    drawn, labels = [], []
    for i, (source, losses) in enumerate(columns.items()):
        smooth = smoothed(np.where(np.isfinite(losses), losses, np.nan), metrics.bands)
        if i == MOST_SOURCES or not (kept := np.isfinite(smooth)).any():
            break
        # A step may have no row of a small source: its line goes on to the next that has, but not across a stage without it.
        for band in metrics.bands:
            at = np.arange(band.first, band.end)[kept[band.first : band.end]]
            if len(at):
                axes.plot(*thinned(x[at], smooth[at]), color=SOURCES[i])
        drawn.append(smooth[kept])
        labels.append((float(smooth[kept][-1]), f"{clip(source, name_limit)} {decimal(smooth[kept][-1])}", SOURCES[i]))
    values = np.concatenate(drawn)
    low, high = float(np.min(values)), float(np.percentile(values, 99.5))
    room = 0.06 * (high - low or 1)
    axes.set_ylim(low - room, high + room)
    _name_y(axes, "loss, nats per token", stretches)
    label_right(axes, labels)


def draw_epochs(axes: Axes, metrics: Metrics, name_limit: int = 10) -> None:
    """How often each source has been seen."""
    x, stretches = _along(axes, metrics, "tokens")
    labels = []
    for i, (source, epochs) in enumerate(metrics.by_source("epoch", np.nan).items()):
        if i == MOST_SOURCES or not (kept := np.isfinite(epochs)).any():
            break
        axes.plot(*thinned(x[kept], epochs[kept]), color=SOURCES[i])
        last = float(epochs[kept][-1])
        labels.append((last, f"{clip(source, name_limit)} {decimal(last)}", SOURCES[i]))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _name_y(axes, "times seen", stretches)
    label_right(axes, labels)


def draw_gradient_norm(axes: Axes, metrics: Metrics) -> None:
    """The gradient's norm before it was scaled down: each step faint, the mean of neighbouring steps strong."""
    x, stretches = _along(axes, metrics, "tokens")
    norm = metrics.column("gradient_norm")
    smooth = smoothed(norm, metrics.bands)
    axes.plot(*thinned(x, norm), color=MODEL, alpha=0.28, linewidth=0.8)
    axes.plot(*thinned(x, smooth), color=MODEL)
    axes.set_ylim(0, 1.12 * float(np.nanpercentile(norm, 99.5)) or 1)
    _name_y(axes, "gradient norm", stretches)
    last = float(smooth[np.isfinite(smooth)][-1])
    label_right(axes, [(last, decimal(last), MODEL)])


def draw_learning_rate(axes: Axes, metrics: Metrics) -> None:
    x, stretches = _along(axes, metrics, "tokens")
    axes.plot(*thinned(x, metrics.column("learning_rate")), color=MODEL)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _name_y(axes, "learning rate", stretches)


def draw_chunk_length(axes: Axes, metrics: Metrics, name_limit: int = 12) -> None:
    x, stretches = _along(axes, metrics, "tokens")
    starts = np.concatenate([[0.0], x[:-1]])
    columns = metrics.by_source("chunk_length", np.nan)
    labels = []
    seen: set[float] = set()
    for i, (source, lengths) in enumerate(columns.items()):
        if i == MOST_SOURCES or not np.isfinite(lengths).any():
            break
        beside = offset_copy(axes.transData, axes.get_figure(root=True), y=-2.6 * i, units="points")
        edges = np.flatnonzero(~((lengths[1:] == lengths[:-1]) | (np.isnan(lengths[1:]) & np.isnan(lengths[:-1])))) + 1
        first, end = np.concatenate([[0], edges]), np.concatenate([edges, [len(lengths)]]) - 1
        for a, b in zip(first, end, strict=True):
            axes.plot([starts[a], x[b]], [lengths[a]] * 2, color=SOURCES[i], linewidth=2.4, transform=beside)
        for a, b in zip(first[1:], end[:-1], strict=True):
            axes.plot([x[b]] * 2, [lengths[b], lengths[a]], color=SOURCES[i], linewidth=0.8, transform=beside)
        last = float(lengths[np.isfinite(lengths)][-1])
        labels.append((last, f"{clip(source, name_limit)} {last:.0f}", SOURCES[i]))
        seen |= {float(length) for length in lengths[np.isfinite(lengths)]}
    axes.set_yscale("log", base=2)
    axes.set_ylim(min(seen) / 1.35, max(seen) * 1.35)
    axes.yaxis.set_major_locator(FixedLocator(sorted(seen)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    _name_y(axes, "tokens a chunk", stretches)
    label_right(axes, labels)


def draw_mixture(axes: Axes, metrics: Metrics, name_limit: int = 14) -> None:
    x, stretches = _along(axes, metrics, "tokens", shaded=False)
    edges, shares = mixture_shares(metrics, x)
    names = list(shares)
    colours = [SOURCES[i] if i < MOST_SOURCES else OTHERS for i in range(len(names))]
    below = np.zeros(len(edges) - 1)
    labels = []
    for name, colour in zip(names, colours, strict=True):
        above = below + shares[name]
        axes.fill_between(
            edges,
            np.append(below, below[-1]),
            np.append(above, above[-1]),
            step="post",
            color=colour,
            linewidth=0,
        )
        labels.append((float(below[-1] + above[-1]) / 2, clip(name, name_limit), colour))
        below = above
        axes.plot(edges, np.append(above, above[-1]), color=SURFACE, linewidth=1, drawstyle="steps-post")
    for stretch in stretches[1:]:
        axes.axvline(stretch.start, color=SURFACE, linewidth=1.2)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}"))
    axes.grid(visible=False)
    _name_y(axes, "% of tokens", stretches)
    label_right(axes, labels)


def draw_machine(axes: Axes, trainings: Sequence[Metrics], column: str, unit: str, unit_size: float) -> None:
    """`tokens_per_second` or `memory_bytes` over the tokens of one training after the other."""
    x_parts: list[Column] = []
    stretches: list[Stretch] = []
    for training in trainings:
        start = x_parts[-1][-1] if x_parts else 0.0
        x_parts.append(training.column("tokens") + start)
        stretches += _stretches(training, x_parts[-1], start)
    x = np.concatenate(x_parts)
    y = np.concatenate([training.column(column) for training in trainings]) / unit_size
    x_unit, x_size = _token_unit(x[-1])
    stretches = [Stretch(s.name, s.start / x_size, s.end / x_size) for s in stretches]
    _set_x(axes, x[-1] / x_size, f"tokens, {x_unit}" if x_unit else "tokens", stretches)
    smooth = np.concatenate([smoothed(t.column(column), t.bands) for t in trainings]) / unit_size
    axes.plot(*thinned(x / x_size, y), color=MODEL, alpha=0.28, linewidth=0.8)
    axes.plot(*thinned(x / x_size, smooth), color=MODEL)
    axes.set_ylim(0, 1.12 * float(np.nanmax(y[np.isfinite(y)])) or 1)
    _name_y(axes, unit, stretches)
    last = float(smooth[np.isfinite(smooth)][-1])
    label_right(axes, [(last, decimal(last, 1 if last >= 10 else 2), MODEL)])


def draw_bits_of(axes: Axes, results: Results, source: str, limits: tuple[float, float], narrow: bool) -> None:
    scores = {stage: by_source[source] for stage, by_source in results.bits_per_byte.items() if source in by_source}
    bigram = results.kneser_ney_bits_per_byte.get(source)
    places = np.arange(len(scores))
    values = np.array(list(scores.values()), dtype=np.float64)
    axes.set_ylim(*limits)
    axes.set_xlim(-0.5, len(scores) - 0.5 if scores else 0.5)
    if bigram is not None:
        axes.axhline(bigram, color=BASELINE, linestyle=(0, (4, 3)), linewidth=1.2)
    axes.plot(places, values, color=MODEL, marker="o", markersize=5.5, markeredgewidth=0)
    taken = []
    for i, value in enumerate(values):
        below = value <= values[i - 1] if i else len(values) > 1 and values[1] > value
        if bigram is not None and abs(bigram - value) < 0.16 * (limits[1] - limits[0]):
            below = bool(value <= bigram)  # away from the dashed line
        told = axes.annotate(
            decimal(value),
            (i, value),
            (0, -7 if below else 7),
            "data",
            "offset points",
            ha="center",
            va="top" if below else "bottom",
            bbox={"facecolor": SURFACE, "linewidth": 0, "pad": 0.6},
        )
        taken.append(told)
    if bigram is not None and np.isfinite(bigram):
        _name_bigram(axes, bigram, values, [told.get_window_extent() for told in taken])
    crowded = narrow and len(scores) > 3
    axes.set_xticks(places, [clip(stage, 12) for stage in scores])
    axes.tick_params(axis="x", labelcolor=INK, length=0, labelsize="small" if crowded else "medium")
    if crowded:
        for label in axes.get_xticklabels():
            label.set(rotation=25, ha="right", rotation_mode="anchor")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    _name_y(axes, "bits per byte", [])


def _name_bigram(axes: Axes, bigram: float, values: Column, taken: Sequence[BboxBase]) -> None:
    """The dashed line's name, at that end and on that side of it where it covers least of the curve and its numbers."""
    along = np.linspace(0, max(0, len(values) - 1), 200)
    curve = axes.transData.transform(np.column_stack([along, np.interp(along, np.arange(len(values)), values)]))
    covered: list[tuple[float, Annotation]] = []
    for at_left in (True, False):
        for below in (True, False):
            name = axes.annotate(
                f"bigram {decimal(bigram)}",
                (0 if at_left else 1, bigram),
                (4 if at_left else 0, -3 if below else 3),
                axes.get_yaxis_transform(),
                "offset points",
                color=MUTED,
                ha="left" if at_left else "right",
                va="top" if below else "bottom",
            )
            box = name.get_window_extent()
            numbers = sum(box.overlaps(other) for other in taken)
            outside = not axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
            covered.append((1000.0 * (numbers + outside) + box.count_contains(curve), name))
    best = min(covered, key=lambda found: found[0])[1]
    for _, name in covered:
        if name is not best:
            name.remove()


def mixture_shares(metrics: Metrics, x: Column) -> tuple[Column, dict[str, Column]]:
    """Each source's share of the tokens drawn, in about 60 spans that keep within their stage: edges and shares.

    Sources past the palette are added up as one.
    """
    mix = metrics.by_source("mix", 0.0)
    names = list(mix)
    if len(names) > MOST_SOURCES:
        rest = names[MOST_SOURCES:]
        mix = {name: mix[name] for name in names[:MOST_SOURCES]} | {
            f"{len(rest)} others": np.sum([mix[name] for name in rest], axis=0)
        }
    firsts: list[int] = []
    for band in metrics.bands:
        spans = max(1, min(band.end - band.first, round(60 * (band.end - band.first) / len(metrics.rows))))
        firsts += [band.first + (band.end - band.first) * i // spans for i in range(spans)]
    edges = np.array([x[first - 1] if first else 0.0 for first in firsts] + [x[-1]])
    sums = {name: np.add.reduceat(drawn, firsts) for name, drawn in mix.items()}
    total = np.sum(list(sums.values()), axis=0)
    return edges, {name: drawn / np.where(total > 0, total, 1) for name, drawn in sums.items()}


def smoothed(values: Column, bands: Sequence[Band]) -> Column:
    """The mean of each step and its neighbours in the same stage, about a thirtieth of all steps; gaps are passed over.

    As many neighbours before as after, so that a steep start isn't drawn late; at a stage's end those before it.
    """
    reach = max(3, len(values) // 60)
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    out = np.full(len(values), np.nan)
    for band in bands:
        place = np.arange(band.first, band.end)
        low = np.maximum(place - reach, band.first)
        high = np.minimum(place + np.where(place - band.first < reach, place - band.first, reach), band.end - 1) + 1
        counted = counts[high] - counts[low]
        out[place] = np.where(counted > 0, (sums[high] - sums[low]) / np.maximum(counted, 1), np.nan)
    out[~finite] = np.nan
    return out


def thinned(x: Column, y: Column) -> tuple[Column, Column]:
    """No more points than a chart has pixels for; the last one always."""
    every = -(-len(x) // _MOST_POINTS)
    kept = np.arange(len(x) - 1, -1, -every)[::-1]
    return x[kept], y[kept]


def _along(axes: Axes, metrics: Metrics, along: str, shaded: bool = True) -> tuple[Column, list[Stretch]]:
    """Make `tokens` or `seconds` the x axis, in a unit that suits; returns x in that unit, and where the stages lie."""
    x = metrics.column(along)
    if along == "tokens":
        unit, unit_size = _token_unit(x[-1])
        label = f"tokens, {unit}" if unit else "tokens"
    else:
        unit, unit_size = _time_unit(float(np.nanmax(x)))
        label = f"training time, {unit}"
    x = x / unit_size
    stretches = _stretches(metrics, x, 0.0)
    _set_x(axes, float(np.nanmax(x)), label, stretches if shaded else [])
    return x, stretches


def _stretches(metrics: Metrics, x: Column, start: float) -> list[Stretch]:
    bands = metrics.bands
    return [Stretch(band.name, x[band.first - 1] if band.first else start, x[band.end - 1]) for band in bands]


def _set_x(axes: Axes, end: float, label: str, stretches: Sequence[Stretch]) -> None:
    axes.set_xlim(0, end or 1)
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6 if axes.bbox.width > 250 else 4, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for stretch in stretches[1::2]:
        axes.axvspan(stretch.start, stretch.end, color=SHADE, linewidth=0, zorder=-2)
    for stretch in stretches[1:]:
        axes.axvline(stretch.start, color=RULE, linewidth=0.8, zorder=-1)


def _name_y(axes: Axes, name: str, stretches: Sequence[Stretch]) -> None:
    """The unit of y, lying above its axis; below it the stages' names, where there is more than one and room."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    lift = 24 if len(stretches) > 1 else 9
    axes.text(0, 1, name, color=MUTED, transform=offset_copy(axes.transAxes, figure, -GUTTER, lift, units="points"))
    if len(stretches) < 2:
        return
    row = offset_copy(blended_transform_factory(axes.transData, axes.transAxes), figure, 0, 5, units="points")
    taken = -np.inf
    for stretch in stretches:
        text = axes.text(stretch.start, 1, clip(stretch.name), color=INK, transform=row)
        box = text.get_window_extent()
        if stretch is stretches[-1] and box.x1 > axes.bbox.x1:
            text.set(x=stretch.end, ha="right")
            box = text.get_window_extent()
        if box.x0 < taken:
            text.remove()
        else:
            taken = box.x1 + 4


def bits_limits(results: Results, sources: Sequence[str]) -> tuple[float, float]:
    tables = [*results.bits_per_byte.values(), results.kneser_ney_bits_per_byte]
    values = [table[source] for table in tables for source in sources if source in table]
    finite = [value for value in values if np.isfinite(value)] or [0.0, 1.0]
    room = 0.2 * (max(finite) - min(finite) or 1)
    return max(0.0, min(finite) - 1.4 * room), max(finite) + room


def _token_unit(most: float) -> tuple[str, float]:
    for unit_size, unit in ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if most >= unit_size:
            return unit, unit_size
    return "", 1.0


def _time_unit(most: float) -> tuple[str, float]:
    for unit_size, unit in ((2 * 86400, "days"), (2 * 3600, "hours"), (120, "minutes")):
        if most >= unit_size:
            return unit, {"days": 86400.0, "hours": 3600.0, "minutes": 60.0}[unit]
    return "seconds", 1.0
