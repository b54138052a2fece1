"""Figures of runs as SVG for inclusion in an HTML page.

Importing this takes as long as matplotlib does, so commands import it only once they draw. Figures have no
background and draw text and axes in ``currentColor``, so that they follow the page into its dark mode.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from raydistill.reporting.runs import Metrics, RunRecord, Sweep

COLOURS = ("#3b82c4", "#e08214", "#2ca58d", "#c2528b", "#8c6bb1", "#a89116", "#d1495b", "#5f9ea0")
"""Of medium lightness: readable on white and on near-black."""

_INK = "#7f7f7e"
_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "raydistill",
    # A run may be called "$x$"; its name is text, not mathematics.
    "text.parse_math": False,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "grid.color": _INK,
    "grid.alpha": 0.18,
    "grid.linewidth": 0.7,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "font.size": 9,
    "lines.linewidth": 1.7,
}
_numbers = count(1)


def validation_curves(groups: Mapping[str, Sequence[RunRecord]], metric: str = "val/top1") -> str:
    """Draw a metric over epochs; runs of one group share a colour.

    Args:
        groups: label -> the runs that carry it.
        metric: a key of ``metrics.jsonl``.
    """
    with mpl.rc_context(_RC):
        figure, axes = _figure(7.2, 3.4)
        for number, (label, members) in enumerate(groups.items()):
            for position, record in enumerate(members):
                _line(axes, record.metrics, metric, number, label=label if position == 0 else None)
        _finish_epochs(axes, _metric_name(metric))
        return _svg(figure, f"{metric} over epochs for {', '.join(groups)}")


def loss_curves(label: str, records: Sequence[RunRecord]) -> str:
    """Draw the training loss of runs of one group, and the terms that it is the weighted sum of."""
    names = dict.fromkeys(key for record in records for epoch in record.metrics for key in epoch)
    methods = {method for record in records for method in record.methods}
    # Only losses: rates and accuracies that a run may report under train/ live on other scales.
    terms = [name for name in names if name.startswith("train/") and name.removeprefix("train/") in methods]
    with mpl.rc_context(_RC):
        figure, axes = _figure(4.2, 2.8)
        for number, name in enumerate(["train/loss", *terms]):
            for position, record in enumerate(records):
                shown = name.removeprefix("train/") if position == 0 else None
                _line(axes, record.metrics, name, number, label=shown)
        _finish_epochs(axes, "training loss")
        return _svg(figure, f"training loss of {label}")


def comparison_plot(frame: pd.DataFrame) -> str:
    """Draw each group of a comparison: its seeds as dots, their mean as a bar with the spread as whiskers."""
    with mpl.rc_context(_RC):
        figure, axes = _figure(7.2, 0.75 + 0.42 * len(frame))
        roles = {role: COLOURS[number] for number, role in enumerate(("distilled", "teacher", "student alone"))}
        for position, row in enumerate(frame.to_dict("records")):
            colour = roles[row["role"]]
            spread = None if math.isnan(row["std"]) else row["std"]
            axes.errorbar(
                row["mean"], position, xerr=spread, fmt="|", color=colour, markersize=17, markeredgewidth=2.6,
                elinewidth=1.6, capsize=4, zorder=3,
            )  # fmt: skip
            axes.plot(row["values"], [position] * row["n"], "o", color=colour, alpha=0.5, markersize=5, mew=0)
        axes.set_yticks(range(len(frame)), [_plain(label, 44) for label in frame["label"]])
        axes.set_ylim(len(frame) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        axes.set_xlabel("test top-1 (%)")
        return _svg(figure, "test accuracy of " + ", ".join(frame["label"]))


def sweep_plots(sweep: Sweep) -> dict[str, str]:
    """Draw the metric of each trial against each swept value; returns key -> SVG."""
    with mpl.rc_context(_RC):
        return {key: _sweep_plot(sweep, key) for key in sweep.keys}


def best_so_far(sweep: Sweep) -> str:
    """Draw the best metric found against the epochs spent on all trials until then, in their order."""
    ended = sweep.trials[sweep.trials["status"] != "failed"]
    metric = ended[sweep.metric]
    best = metric.cummin() if sweep.mode == "min" else metric.cummax()
    with mpl.rc_context(_RC):
        figure, axes = _figure(4.2, 2.8)
        spent = ended["epochs"].cumsum()
        axes.step(spent, best.ffill(), where="post", color=COLOURS[0])
        axes.plot(spent, metric, ".", color=COLOURS[0], alpha=0.45)
        axes.set_xlabel("epochs trained by all trials so far")
        axes.set_ylabel(f"best {_metric_name(sweep.metric)} so far")
        axes.set_xlim(left=0)
        return _svg(figure, f"best {sweep.metric} against epochs spent")


def trial_curves(sweep: Sweep) -> str:
    """Draw the metric over epochs for every trial whose epochs are kept, the best one on top."""
    best = str((sweep.best or {}).get("trial"))
    statuses = dict(zip(sweep.trials["trial"].map(str), sweep.trials["status"], strict=True))
    with mpl.rc_context(_RC):
        figure, axes = _figure(4.2, 2.8)
        for trial, history in sweep.histories.items():
            style: dict[str, Any] = {
                "color": COLOURS[0] if statuses[trial] == "completed" else _INK,
                "alpha": 0.55,
                "linewidth": 1.1,
            }
            if trial == best:
                style = {"color": COLOURS[1], "alpha": 1.0, "linewidth": 2.2, "zorder": 3}
            points = _points(history, sweep.metric)
            axes.plot(*points, **style)
            if statuses[trial] == "stopped" and points[0]:
                axes.plot(points[0][-1], points[1][-1], "x", color=_INK, markersize=4.5)
        _finish_epochs(axes, _metric_name(sweep.metric))
        return _svg(figure, f"{sweep.metric} over epochs for every trial")


def _sweep_plot(sweep: Sweep, key: str) -> str:
    figure, axes = _figure(4.2, 2.8)
    ended = sweep.ended
    kind, choices = next(iter(sweep.space[key].items()), ("choice", ()))
    numeric = pd.api.types.is_numeric_dtype(ended[key]) and not pd.api.types.is_bool_dtype(ended[key])
    places = ended[key] if numeric else ended[key].map(str)
    if not numeric:
        # The order of the experiment file, not of the trials; pandas reads "true" and 4.0 in its own way.
        names = list(dict.fromkeys([*map(str, choices), *places]))
        names = [name for name in names if name in set(places)]
        places = places.map(names.index)
        axes.set_xticks(range(len(names)), [_plain(name, 16) for name in names])
        axes.set_xlim(-0.5, len(names) - 0.5)
    _mark_trials(axes, sweep, places)
    if numeric and "log" in kind and (places > 0).all():
        values = [float(value) for value in places]
        _logarithmic(axes, max(values) / min(values))
    axes.set_xlabel(_plain(key, 48))
    axes.set_ylabel(_metric_name(sweep.metric))
    return _svg(figure, f"{sweep.metric} against {key}")


def _logarithmic(axes: Axes, ratio: float) -> None:
    # Values closer together than this may have no round number between them to label.
    if ratio < 3:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if ratio < 300 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(_short_number))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mark_trials(axes: Axes, sweep: Sweep, places: pd.Series) -> None:
    ended = sweep.ended
    stopped = ended["status"] == "stopped"
    metric = ended[sweep.metric]
    if stopped.any():
        axes.plot(places[stopped], metric[stopped], "x", color=_INK, markersize=6, label="stopped early")
    if not stopped.all():
        axes.plot(places[~stopped], metric[~stopped], "o", color=COLOURS[0], alpha=0.85, mew=0, label="completed")
    if not ended.empty:
        best = int(metric.argmin() if sweep.mode == "min" else metric.argmax())
        ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2.2}
        axes.plot(places.iloc[best], metric.iloc[best], "o", markeredgecolor=COLOURS[1], label="best", **ring)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.3)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _line(axes: Axes, history: Sequence[Metrics], name: str, number: int, label: str | None) -> None:
    epochs, values = _points(history, name)
    if epochs:
        style = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        colour = COLOURS[number % len(COLOURS)]
        marker = "o" if len(epochs) < 13 else ""
        shown = _plain(label, 44) if label else None
        axes.plot(epochs, values, style, color=colour, marker=marker, markersize=3.2, label=shown)


def _points(history: Sequence[Metrics], name: str) -> tuple[list[int], list[float]]:
    # A diverged epoch is a gap, not a reason to fail.
    known = [
        (position, epoch[name])
        for position, epoch in enumerate(history, start=1)
        if isinstance(epoch.get(name), int | float) and math.isfinite(epoch[name])
    ]
    return [int(history[position - 1].get("epoch", position)) for position, _ in known], [value for _, value in known]


def _finish_epochs(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = 1 if longest > 30 else 2 if longest > 14 else 3
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2)


def _metric_name(metric: str) -> str:
    return "validation top-1 (%)" if metric == "val/top1" else _plain(metric, 40)


def _plain(text: object, limit: int) -> str:
    """Return a label on one line; matplotlib would leave out of the legend what starts with an underscore."""
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return f"\N{ZERO WIDTH SPACE}{line}" if line.startswith("_") else line


def _short_number(value: float, _: object) -> str:
    return f"{value:g}"


def _svg(figure: Figure, description: str) -> str:
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
    body = body.replace("url(#", f"url(#{prefix}").replace(_INK, "currentColor")
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    return f'<svg {box[0]} role="img" aria-label="{html.escape(description)}">{body.strip()}'
