"""Figures about the trials of a sweep: over each swept value, over epochs, over the compute spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from raydistill.reporting.drawing import (
    COLOURS,
    INK,
    STYLE,
    figure_of,
    logarithmic,
    metric_name,
    plain,
    points,
    svg_of,
)
from raydistill.reporting.durations import short_duration
from raydistill.reporting.importance import Importances
from raydistill.reporting.sweeps import BASELINE, Sweep
from raydistill.reporting.swept import SweptKey, swept_keys

BLUE, ORANGE, GREEN = COLOURS[:3]
RING: Mapping[str, Any] = {
    "marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 2.2, "markeredgecolor": ORANGE,
}  # fmt: skip
COMPLETED: Mapping[str, Any] = {"marker": "o", "color": BLUE, "alpha": 0.85, "markeredgewidth": 0}
DIAMOND: Mapping[str, Any] = {"marker": "D", "color": GREEN, "markersize": 6.5, "markeredgewidth": 0}
STOP_MARKERS = ("x", "+", "1", "2")
"""For the first rungs; where trials were stopped at more epochs than these, all of them share the first."""


@dataclass(frozen=True)
class Group:
    """Trials that look alike in every figure."""

    label: str
    trials: pd.DataFrame
    style: Mapping[str, Any]


def groups(sweep: Sweep) -> list[Group]:
    """Return the trials that ended: stopped ones by the epoch of their stop, completed ones, the baseline, the best."""
    ended = sweep.ended
    stopped, is_baseline = ended["status"] == "stopped", ended["trial"] == BASELINE
    best = str((sweep.best or {}).get("trial"))
    found = [
        *_stops(ended[stopped & ~is_baseline]),
        Group("completed", ended[~stopped & ~is_baseline], COMPLETED),
        Group("baseline, stopped early", ended[stopped & is_baseline], DIAMOND),
        Group("baseline", ended[~stopped & is_baseline], DIAMOND),
        Group("best", ended[ended["trial"] == best], RING),
    ]
    return [group for group in found if len(group.trials)]


def legend(sweep: Sweep) -> str:
    """Draw what the marks of all figures of a sweep mean."""
    with mpl.rc_context(STYLE):
        marks = [Line2D([], [], linestyle="", label=group.label, **group.style) for group in groups(sweep)]
        figure = Figure(figsize=(7.2, 0.3 * -(-len(marks) // 5)), layout="constrained")
        figure.legend(handles=marks, loc="center", ncols=5, handletextpad=0.2, columnspacing=1.4)
        return svg_of(figure, "marks of the trials: " + ", ".join(group.label for group in groups(sweep)))


def value_plots(sweep: Sweep) -> dict[str, str]:
    """Draw the metric of each trial against each swept value; returns key -> SVG."""
    with mpl.rc_context(STYLE):
        return {key.key: _value_plot(sweep, key) for key in swept_keys(sweep)}


def trial_curves(sweep: Sweep) -> str:
    """Draw the metric over epochs for every trial whose epochs are kept, with ASHA's rungs and stops."""
    best = str((sweep.best or {}).get("trial"))
    statuses = dict(zip(sweep.trials["trial"], sweep.trials["status"], strict=True))
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(7.2, 3.4)
        for rung in sweep.rungs:
            axes.axvline(rung, color=INK, linestyle=":", linewidth=1.0, alpha=0.7)
            axes.text(rung, 1.01, f"rung {rung}", transform=axes.get_xaxis_transform(), fontsize=8, ha="center")
        for trial, history in sweep.histories.items():
            curve = points(history, sweep.metric)
            axes.plot(*curve, **_curve_style(trial, statuses[trial], best))
            if statuses[trial] == "stopped" and curve[0]:
                axes.plot(curve[0][-1], curve[1][-1], "x", color=INK, markersize=5)
        axes.set_xlabel("epoch")
        axes.set_ylabel(metric_name(sweep.metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return svg_of(figure, f"{sweep.metric} over epochs for every trial")


def best_so_far(sweep: Sweep) -> str:
    """Draw the best metric found against the epochs spent on all trials until then, in the order of their numbers."""
    trials = sweep.trials
    metric = trials[sweep.metric].where(trials.index.isin(sweep.ended.index))
    best = (metric.cummin() if sweep.mode == "min" else metric.cummax()).ffill()
    spent = trials["epochs"].cumsum()
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(7.2, 3.0)
        axes.step([*spent, spent.iloc[-1]], [*best, best.iloc[-1]], where="post", color=ORANGE)
        for group in groups(sweep):
            axes.plot(spent[group.trials.index], metric[group.trials.index], linestyle="", **group.style)
        _zoom(axes, sweep)
        axes.set_xlabel("epochs trained by all trials so far")
        axes.set_ylabel(f"best {metric_name(sweep.metric)}")
        axes.set_xlim(0, max(1, spent.iloc[-1]) * 1.03)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _seconds_on_top(axes, spent, trials["seconds"].fillna(0.0).cumsum())
        return svg_of(figure, f"best {sweep.metric} against epochs spent")


def importance_plot(found: Importances) -> str:
    """Draw importances as bars, with one standard deviation over shuffles as whiskers."""
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(7.2, 0.75 + 0.3 * len(found.keys))
        whiskers = {"ecolor": INK, "elinewidth": 1.2, "capsize": 3}
        axes.barh(range(len(found.keys)), found.means, xerr=found.spreads, color=BLUE, height=0.6, error_kw=whiskers)
        axes.set_yticks(range(len(found.keys)), [plain(key, 44) for key in found.keys])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("fall of R² where the values are shuffled")
        return svg_of(figure, "importance of " + ", ".join(found.keys))


def _stops(stopped: pd.DataFrame) -> list[Group]:
    style: dict[str, Any] = {"color": INK, "markersize": 6.5, "markeredgewidth": 1.3}
    by_epoch = [(epochs, stopped[stopped["epochs"] == epochs]) for epochs in sorted(set(stopped["epochs"]))]
    if len(by_epoch) > len(STOP_MARKERS):
        return [Group("stopped early", stopped, style | {"marker": STOP_MARKERS[0]})]
    return [
        Group(f"stopped after {epochs} epoch{'s' if epochs != 1 else ''}", trials, style | {"marker": marker})
        for (epochs, trials), marker in zip(by_epoch, STOP_MARKERS, strict=False)
    ]


def _value_plot(sweep: Sweep, key: SweptKey) -> str:
    figure, axes = figure_of(4.2, 2.8)
    places = key.places + _spread(key) if key.names else key.places
    _baseline_line(axes, sweep)
    for group in groups(sweep):
        axes.plot(places[group.trials.index], group.trials[sweep.metric], linestyle="", **group.style)
    if key.names:
        _name_places(axes, sweep, key)
    elif key.logarithmic:
        logarithmic(axes, places.max() / places.min())
    _zoom(axes, sweep)
    axes.set_xlabel(plain(key.key, 48))
    axes.set_ylabel(metric_name(sweep.metric))
    return svg_of(figure, f"{sweep.metric} against {key.key}")


def _spread(key: SweptKey) -> pd.Series:
    """Return small steps to the side, so that trials with one name do not cover each other."""
    order = key.places.groupby(key.places).cumcount()
    count = key.places.groupby(key.places).transform("count")
    return 0.36 * ((order + 0.5) / count - 0.5)


def _name_places(axes: Axes, sweep: Sweep, key: SweptKey) -> None:
    names = [plain(name, 18) for name in key.names]
    # About 44 characters fit side by side.
    slanted: dict[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, **(slanted if max(map(len, names)) * len(names) > 44 else {}))
    axes.set_xlim(-0.5, len(key.names) - 0.5)
    axes.grid(visible=False, axis="x")
    completed = sweep.ended[sweep.ended["status"] == "completed"]
    for place, values in completed[sweep.metric].groupby(key.places):
        if len(values) > 1:
            axes.plot([place - 0.32, place + 0.32], [values.mean()] * 2, color=BLUE, linewidth=1.4, alpha=0.8)


def _baseline_line(axes: Axes, sweep: Sweep) -> None:
    baseline = sweep.baseline
    if baseline is not None:
        axes.axhline(baseline[sweep.metric], color=GREEN, linestyle="--", linewidth=1.1, alpha=0.8)


def metric_floor(sweep: Sweep) -> float | None:
    """Return the metric beyond which trials are drawn on the edge; None where all of them fit.

    Trials that were stopped after an epoch may lie so far from the others that nothing else could be told apart.
    """
    values = sweep.ended[sweep.metric]
    completed = values[sweep.ended["status"] == "completed"]
    span = completed.max() - completed.min()
    if len(completed) < 3 or not span > 0:
        return None
    floor = completed.max() + span if sweep.mode == "min" else completed.min() - span
    is_beyond = values.max() > floor if sweep.mode == "min" else values.min() < floor
    return float(floor) if is_beyond else None


def _zoom(axes: Axes, sweep: Sweep) -> None:
    """Move trials beyond the floor onto it, and end the axis there."""
    floor = metric_floor(sweep)
    if floor is None:
        return
    clip = np.minimum if sweep.mode == "min" else np.maximum
    for line in axes.lines:
        line.set_ydata(clip(np.asarray(line.get_ydata(), dtype=float), floor))
    values = clip(sweep.ended[sweep.metric].to_numpy(dtype=float), floor)
    margin = 0.06 * (values.max() - values.min())
    axes.set_ylim(values.min() - margin, values.max() + margin)


def _curve_style(trial: str, status: str, best: str) -> dict[str, Any]:
    if trial == best:
        return {"color": ORANGE, "linewidth": 2.2, "zorder": 4}
    if trial == BASELINE:
        return {"color": GREEN, "linewidth": 1.8, "linestyle": "--", "zorder": 3}
    return {"color": BLUE if status == "completed" else INK, "alpha": 0.55, "linewidth": 1.1}


def _seconds_on_top(axes: Axes, epochs: pd.Series, seconds: pd.Series) -> None:
    if not seconds.iloc[-1] > 0:
        return
    top = axes.twiny()
    top.grid(visible=False)
    left, right = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if left <= tick <= min(right, epochs.iloc[-1])]
    times = np.interp(ticks, [0, *epochs], [0, *seconds])
    top.set_xlim(left, right)
    top.set_xticks(ticks, [short_duration(time) for time in times], fontsize=8)
    top.tick_params(length=0)
