"""Accuracy against what a student costs, with the front."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from raydistill.reporting.drawing import COLOURS, STYLE, figure_of, logarithmic, metric_name, plain, svg_of
from raydistill.reporting.pareto import COSTS, candidates, pareto_front, swept_costs
from raydistill.reporting.sweep_plots import groups
from raydistill.reporting.sweeps import Sweep


def pareto_plots(sweep: Sweep) -> list[str]:
    """Draw the metric of completed trials against each cost that differs, the front as a line, its members named."""
    trials = candidates(sweep)
    with mpl.rc_context(STYLE):
        return [_pareto_plot(sweep, trials[trials[cost].notna()], cost) for cost in swept_costs(trials)]


def _pareto_plot(sweep: Sweep, trials: pd.DataFrame, cost: str) -> str:
    figure, axes = figure_of(4.2, 3.0)
    front = trials[pareto_front(trials[cost].tolist(), trials[sweep.metric].tolist(), sweep.mode)].sort_values(cost)
    axes.step(front[cost], front[sweep.metric], where="post", color=COLOURS[1], linewidth=1.4, alpha=0.8)
    for group in groups(sweep):
        shown = trials.loc[group.trials.index.intersection(trials.index)]
        axes.plot(shown[cost], shown[sweep.metric], linestyle="", **group.style)
    if (trials[cost] > 0).all():
        logarithmic(axes, trials[cost].max() / trials[cost].min())
    axes.xaxis.set_major_formatter(FuncFormatter(_with_unit))
    axes.set_xlabel(COSTS[cost])
    axes.set_ylabel(metric_name(sweep.metric))
    axes.margins(x=0.16, y=0.14)
    _name_members(axes, front, cost, sweep)
    return svg_of(figure, f"{sweep.metric} against {cost}")


def _name_members(axes: Axes, front: pd.DataFrame, cost: str, sweep: Sweep) -> None:
    """Write names beside the front, on the side where nothing lies; the best first, and none over another."""
    below = sweep.mode == "min"
    taken: list[tuple[float, float]] = []
    for row in front.sort_values(sweep.metric, ascending=below, kind="stable").to_dict("records"):
        x, y = (axes.transScale + axes.transLimits).transform((row[cost], row[sweep.metric]))
        if any(abs(x - other) < 0.3 and abs(y - level) < 0.07 for other, level in taken):
            continue
        taken.append((x, y))
        name = row.get("student.model")
        text = plain(name if isinstance(name, str) else f"trial {row['trial']}", 18)
        style: dict[str, Any] = {"fontsize": 8, "va": "top" if below else "bottom"}
        style["ha"], aside = ("right", -3) if x > 0.35 else ("center", 0)
        offset = (aside, -8 if below else 8)
        axes.annotate(text, (row[cost], row[sweep.metric]), offset, textcoords="offset points", **style)


def _with_unit(value: float, _: object) -> str:
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
