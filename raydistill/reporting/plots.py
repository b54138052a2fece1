"""Figures about single runs and their comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raydistill.measures import VALIDATION
from raydistill.reporting.drawing import COLOURS, STYLE, figure_of, metric_name, plain, points, svg_of
from raydistill.reporting.reading import Metrics
from raydistill.reporting.runs import RunRecord


def validation_curves(groups: Mapping[str, Sequence[RunRecord]], metric: str) -> str:
    """Draw a metric over epochs; runs of one group share a colour.

    Args:
        groups: label -> the runs that carry it.
        metric: a key of ``metrics.jsonl``.
    """
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(7.2, 3.4)
        for number, (label, members) in enumerate(groups.items()):
            for position, record in enumerate(members):
                _line(axes, record.metrics, metric, number, label=label if position == 0 else None)
        _finish_epochs(axes, metric_name(metric))
        return svg_of(figure, f"{metric} over epochs for {', '.join(groups)}")


def loss_curves(label: str, records: Sequence[RunRecord]) -> str:
    """Draw the training loss of runs of one group, and the terms that it is the weighted sum of."""
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(4.2, 2.8)
        _losses(axes, records)
        return svg_of(figure, f"training loss of {label}")


def training_course(record: RunRecord) -> Figure:
    """Return a figure of one run: its losses, and beside them what was measured on held-out images.

    That is ``val/top1``, or else the first measure of that kind.
    """
    measured = [name for epoch in record.metrics for name in epoch if name.startswith(VALIDATION)]
    metric = "val/top1" if "val/top1" in measured else next(iter(measured), "val/top1")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.2), layout="constrained")
        losses, validation = figure.subplots(1, 2)
        _losses(losses, [record])
        _line(validation, record.metrics, metric, 0, label=None)
        _finish_epochs(validation, metric_name(metric))
    return figure


def comparison_plot(frame: pd.DataFrame) -> str:
    """Draw each group of a comparison: its seeds as dots, their mean as a bar with the spread as whiskers."""
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(7.2, 0.75 + 0.42 * len(frame))
        roles = {role: COLOURS[number] for number, role in enumerate(("distilled", "teacher", "student alone"))}
        for position, row in enumerate(frame.to_dict("records")):
            colour = roles[row["role"]]
            spread = None if math.isnan(row["std"]) else row["std"]
            axes.errorbar(
                row["mean"], position, xerr=spread, fmt="|", color=colour, markersize=17, markeredgewidth=2.6,
                elinewidth=1.6, capsize=4, zorder=3,
            )  # fmt: skip
            axes.plot(row["values"], [position] * row["n"], "o", color=colour, alpha=0.5, markersize=5, mew=0)
        axes.set_yticks(range(len(frame)), [plain(label, 44) for label in frame["label"]])
        axes.set_ylim(len(frame) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.08)
        axes.set_xlabel("test top-1 (%)")
        return svg_of(figure, "test accuracy of " + ", ".join(frame["label"]))


def correlation_map(name: str, differences: pd.DataFrame) -> str:
    """Draw |corr(student) - corr(teacher)| of the logits, class by class, as CRD's Figure 2 does."""
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(4.2, 3.6)
        shown = axes.imshow(differences.to_numpy(), cmap="viridis", vmin=0.0, interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xlabel("class")
        axes.set_ylabel("class")
        figure.colorbar(shown, ax=axes, label="difference of correlations")
        axes.set_title(plain(name, 44))
        return svg_of(figure, f"difference between the correlations of student's and teacher's logits, {name}")


def _losses(axes: Axes, records: Sequence[RunRecord]) -> None:
    """Draw the training losses of runs of one group, and their terms."""
    names = dict.fromkeys(key for record in records for epoch in record.metrics for key in epoch)
    methods = {method for record in records for method in record.methods}
    # Only losses: rates and accuracies that a run may report under train/ live on other scales.
    terms = [name for name in names if name.startswith("train/") and name.removeprefix("train/") in methods]
    for number, name in enumerate(["train/loss", *terms]):
        for position, record in enumerate(records):
            shown = name.removeprefix("train/") if position == 0 else None
            _line(axes, record.metrics, name, number, label=shown)
    _finish_epochs(axes, "training loss")


def _line(axes: Axes, history: Sequence[Metrics], name: str, number: int, label: str | None) -> None:
    epochs, values = points(history, name)
    if epochs:
        style = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        colour = COLOURS[number % len(COLOURS)]
        marker = "o" if len(epochs) < 13 else ""
        shown = plain(label, 44) if label else None
        axes.plot(epochs, values, style, color=colour, marker=marker, markersize=3.2, label=shown)


def _finish_epochs(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, labels))
        columns = 1 if longest > 30 else 2 if longest > 14 else 3
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2)
