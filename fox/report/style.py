"""How a chart looks, and how it leaves as PNG (light) or as SVG (light or dark, as the reader's screen is).

The palette is Okabe and Ito's, which colour-blind readers can tell apart. A colour stands for one thing: `MODEL` for
what we train, `BASELINE` for what it is compared with, `SOURCES` for sources of text.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import offset_copy

SURFACE, INK, MUTED, RULE, SHADE = "#ffffff", "#1d2733", "#5f6b7a", "#d5dae0", "#f3f5f7"
MODEL, BASELINE = "#c4501b", "#6f7a88"
SOURCES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d4b")
OTHERS = "#a3acb8"
GUTTER = 46
"""Points that every pair of axes keeps free at its left, for the numbers; its unit begins at the edge."""

_DARK = {
    SURFACE: "#171c23",
    INK: "#e6eaef",
    MUTED: "#9aa6b4",
    RULE: "#333c47",
    SHADE: "#1f262f",
    MODEL: "#f08a5d",
    BASELINE: "#93a0af",
    SOURCES[0]: "#4ea8de",
    SOURCES[1]: "#f0b93a",
    SOURCES[2]: "#35c49b",
    SOURCES[3]: "#e39bc4",
    SOURCES[4]: "#8fd0f5",
    SOURCES[5]: "#c2a57f",
    OTHERS: "#6d7987",
}
_PNG_DPI = 160
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


@contextmanager
def chart_style(font_size: float) -> Iterator[None]:
    """Draw and save charts in here, in letters of `font_size` points. Names are plain text: no `$formula$` is read."""
    settings: dict[Any, Any] = {
        "axes.axisbelow": True,
        "axes.edgecolor": RULE,
        "axes.facecolor": SURFACE,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": MUTED,
        "axes.labelsize": font_size,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.unicode_minus": False,
        "figure.facecolor": SURFACE,
        "font.family": ["DejaVu Sans"],
        "font.size": font_size,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "fox",
        "text.color": INK,
        "text.parse_math": False,
        "xtick.color": RULE,
        "xtick.labelcolor": MUTED,
        "xtick.labelsize": font_size,
        "ytick.color": RULE,
        "ytick.labelcolor": MUTED,
        "ytick.labelsize": font_size,
        "ytick.left": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that DejaVu lacks
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return file.getvalue()


def svg_address(figure: Figure) -> str:
    """The figure as a `data:` address of an SVG image that follows the reader's choice of light or dark."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = svg.replace("'DejaVu Sans'", _FONTS)
    colours = "|".join(_DARK)
    svg = re.sub(f'(?:{colours})(?=[;"])', lambda found: f"var(--c{found[0][1:]})", svg)
    opened = svg.index(">") + 1
    return "data:image/svg+xml;base64," + base64.b64encode(f"{svg[:opened]}{_THEME}{svg[opened:]}".encode()).decode()


def _variables(colours: dict[str, str]) -> str:
    return ":root{" + "".join(f"--c{light[1:]}:{colour};" for light, colour in colours.items()) + "}"


_THEME = (
    "<style>"
    + _variables({light: light for light in _DARK})
    + f"@media (prefers-color-scheme: dark){{{_variables(_DARK)}}}"
    + "</style>"
)


def label_right(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Name what ends at the right edge: (height in data units, text, colour), moved apart where they would touch.

    Call it last: it places the names by the axes' final limits.
    """
    if not labels:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    bottom, top = axes.bbox.y0, axes.bbox.y1
    wanted = [float(np.clip(axes.transData.transform((0, y))[1], bottom, top)) for y, _, _ in labels]
    placed = _spread(wanted, gap=1.35 * matplotlib.rcParams["font.size"] * figure.dpi / 72, bottom=bottom, top=top)
    for pixel, (_, text, colour) in zip(placed, labels, strict=True):
        y = (pixel - bottom) / (top - bottom)
        dot = Line2D([1], [y], color=colour, marker="o", markersize=5, markeredgewidth=0, linestyle="", clip_on=False)
        dot.set_transform(offset_copy(axes.transAxes, figure, x=9, units="points"))
        axes.add_artist(dot)
        axes.annotate(
            clip(text), (1, y), (15, 0), "axes fraction", "offset points", va="center", ha="left", annotation_clip=False
        )


def _spread(wanted: Sequence[float], gap: float, bottom: float, top: float) -> list[float]:
    """`wanted` heights in the same order, at least `gap` apart, and within the axes as far as they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [wanted[i] for i in order]
    for _ in range(50):
        for i in range(1, len(placed)):
            lack = gap - (placed[i] - placed[i - 1])
            if lack > 0:
                placed[i - 1] -= lack / 2
                placed[i] += lack / 2
        placed[0] = max(placed[0], bottom)
        placed[-1] = min(placed[-1], top) if len(placed) > 1 else placed[-1]
    back = dict(zip(order, placed, strict=True))
    return [back[i] for i in range(len(wanted))]


def clip(name: str, limit: int = 18) -> str:
    """A name as a chart has room for it: on one line, and without what an SVG file can't hold."""
    line = "".join(letter for letter in " ".join(name.split()) if letter.isprintable())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
