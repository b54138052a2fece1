"""Parallel coordinates: one line for each trial through its swept values, to the metric that it reached."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import LogLocator, MaxNLocator

from raydistill.reporting.drawing import COLOURS, INK, PAPER, STYLE, figure_of, metric_name, plain, svg_of
from raydistill.reporting.sweep_plots import metric_floor
from raydistill.reporting.sweeps import BASELINE, Sweep
from raydistill.reporting.swept import SweptKey, swept_keys

WORST_TO_BEST = LinearSegmentedColormap.from_list("", [COLOURS[0], "#9a94a3", COLOURS[1]])
"""From blue over grey to the orange of the best trial: all of medium lightness."""

NOT_SET = -0.12
"""Height at which a line crosses an axis whose key was not set."""


def parallel_coordinates(sweep: Sweep) -> str:
    """Draw the trials that ended across an axis for each swept key; empty for fewer than two keys or trials."""
    keys = [key for key in swept_keys(sweep) if key.places.nunique() > 1]
    ended = sweep.ended
    if len(keys) < 2 or len(ended) < 2:
        return ""
    outcome = SweptKey(sweep.metric, _clipped(sweep))
    heights = pd.DataFrame({place: _heights(key) for place, key in enumerate([*keys, outcome])}).fillna(NOT_SET)
    with mpl.rc_context(STYLE):
        figure, axes = figure_of(max(7.2, 1.05 * len(heights.columns)), 3.8)
        best = str((sweep.best or {}).get("trial"))
        # The best ones last, and so on top.
        for trial in heights[len(keys)].sort_values(ascending=sweep.mode != "min").index:
            colour = _colour(heights.loc[trial, len(keys)], sweep.mode)
            _line(axes, heights.loc[trial], ended.loc[trial], colour, is_best=ended.loc[trial, "trial"] == best)
        for place, key in enumerate(keys):
            _axis(axes, place, key, has_gap=bool(key.places.isna().any()))
        _axis(axes, len(keys), outcome, has_gap=False)
        names = [*(_folded(key.key) for key in keys), _folded(metric_name(sweep.metric), " ")]
        axes.set_xticks(range(len(names)), names)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_yticks([])
        axes.set_xlim(-0.35, len(keys) + 0.45)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return svg_of(figure, f"parallel coordinates of {', '.join(key.key for key in keys)} and {sweep.metric}")


def _clipped(sweep: Sweep) -> pd.Series:
    floor, metric = metric_floor(sweep), sweep.ended[sweep.metric]
    if floor is None:
        return metric
    return metric.clip(upper=floor) if sweep.mode == "min" else metric.clip(lower=floor)


def _scaled(key: SweptKey, places: np.ndarray) -> np.ndarray:
    """Return heights from 0 to 1; a single value lies in the middle."""
    low, high = float(key.places.min()), float(key.places.max())
    if low == high:
        return np.full(len(places), 0.5)
    if key.logarithmic:
        return np.asarray(np.log(places / low) / math.log(high / low))
    return np.asarray((places - low) / (high - low))


def _heights(key: SweptKey) -> pd.Series:
    return pd.Series(_scaled(key, key.places.to_numpy(dtype=float)), index=key.places.index)


def _colour(outcome: float, mode: str) -> tuple[float, ...]:
    colour: tuple[float, ...] = WORST_TO_BEST(1 - outcome if mode == "min" else outcome)
    return colour


def _line(axes: Axes, heights: pd.Series, trial: pd.Series, colour: tuple[float, ...], *, is_best: bool) -> None:
    axes.plot(
        range(len(heights)),
        heights,
        color=colour,
        linewidth=2.8 if is_best else 1.3,
        alpha=1.0 if is_best else 0.75 if trial["status"] == "completed" else 0.45,
        linestyle="--" if trial["trial"] == BASELINE else "-",
        zorder=2.5 if is_best else 2,
    )


def _axis(axes: Axes, place: int, key: SweptKey, *, has_gap: bool) -> None:
    axes.plot([place, place], [0, 1], color=INK, linewidth=1.0, zorder=3)
    ticks = _ticks(key)
    heights = _scaled(key, np.asarray(ticks))
    labels = [(float(height), plain(key.label(tick), 12)) for tick, height in zip(ticks, heights, strict=True)]
    for height, label in [*labels, (NOT_SET, "not set")] if has_gap else labels:
        axes.plot([place - 0.02, place + 0.02], [height] * 2, color=INK, linewidth=1.0, zorder=3)
        box = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.4}
        axes.text(place + 0.045, height, label, fontsize=7.5, va="center", ha="left", zorder=4, bbox=box)


def _ticks(key: SweptKey) -> list[float]:
    if key.names:
        return [float(place) for place in range(len(key.names))]
    low, high = float(key.places.min()), float(key.places.max())
    within = [tick for tick in _round_numbers(key, low, high) if low <= tick <= high]
    return within if len(within) > 1 else sorted({low, high})


def _round_numbers(key: SweptKey, low: float, high: float) -> list[float]:
    if low == high:
        return []
    if key.logarithmic:
        subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
        return [float(tick) for tick in LogLocator(subs=subs).tick_values(low, high)]
    return [float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _folded(text: str, at: str = ".") -> str:
    """Return a long name on several lines, for axes stand close together."""
    return "\n".join(plain(part, 15) for part in text.replace(at, f"{at}\0").split("\0"))
