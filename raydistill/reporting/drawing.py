"""What all figures share: colours, style, labels, and SVG for inclusion in an HTML page.

Importing this takes as long as matplotlib does, so commands import it only once they draw. Figures have no
background and draw text and axes in ``currentColor``, so that they follow the page into its dark mode.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Sequence
from itertools import count
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from raydistill.reporting.reading import Metrics

COLOURS = ("#3b82c4", "#e08214", "#2ca58d", "#c2528b", "#8c6bb1", "#a89116", "#d1495b", "#5f9ea0")
"""Of medium lightness: readable on white and on near-black."""

INK, PAPER = "#7f7f7e", "#fefefd"
"""Stand for the page's own colours, which take their places in the SVG."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raydistill",
    # A run may be called "$x$"; its name is text, not mathematics.
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "font.size": 9,
    "lines.linewidth": 1.7,
}
_numbers = count(1)


def figure_of(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def points(history: Sequence[Metrics], name: str) -> tuple[list[int], list[float]]:
    """Return the epochs that have a finite value of a metric, and the values."""
    # A diverged epoch is a gap, not a reason to fail.
    known = [
        (position, epoch[name])
        for position, epoch in enumerate(history, start=1)
        if isinstance(epoch.get(name), int | float) and math.isfinite(epoch[name])
    ]
    return [int(history[position - 1].get("epoch", position)) for position, _ in known], [value for _, value in known]


def metric_name(metric: str) -> str:
    """Return how a metric is called on an axis."""
    return "validation top-1 (%)" if metric == "val/top1" else plain(metric, 40)


def plain(text: object, limit: int) -> str:
    """Return a label on one line; matplotlib would leave out of the legend what starts with an underscore."""
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return f"\N{ZERO WIDTH SPACE}{line}" if line.startswith("_") else line


def _short_number(value: float, _: object) -> str:
    return f"{value:g}"


def logarithmic(axes: Axes, ratio: float) -> None:
    """Make the horizontal axis logarithmic, where values of this ratio leave room for round numbers."""
    # Values closer together than this may have no round number between them to label.
    if ratio < 3:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 300 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    axes.xaxis.set_minor_formatter(NullFormatter())


def svg_of(figure: Figure, description: str) -> str:
    """Return the figure as an element of an HTML page: scalable, with ids of its own and nothing to fetch."""
    text = io.StringIO()
    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    prefix = f"figure{next(_numbers)}-"
    head, body = svg.split(">", 1)
    # HTML knows the name spaces, and all figures of a page share one space of ids.
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(?<=[\s])id="', f'id="{prefix}', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{prefix}', body)
    body = body.replace("url(#", f"url(#{prefix}").replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    return f'<svg {box[0]} role="img" aria-label="{html.escape(description)}">{body.strip()}'
