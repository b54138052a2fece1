"""Which trials no other one beats in accuracy and cost at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from raydistill.reporting.sweeps import Sweep

COSTS = {"parameters": "parameters", "latency_ms": "latency (ms)"}
"""Columns of ``trials.csv`` that a smaller student lowers, with their names on an axis."""


def pareto_front(costs: Sequence[float], metric: Sequence[float], mode: str = "max") -> np.ndarray:
    """Return which points are not dominated.

    A point is dominated where another one costs no more and has no worse a metric, and is better in one of the two.
    Equal points do not dominate each other; a point with a missing value is never on the front.

    Args:
        costs: of each point; lower is better.
        metric: of each point.
        mode: ``max`` where a higher metric is better, ``min`` where a lower one is.

    Returns:
        bool, one for each point.
    """
    cost = np.asarray(costs, dtype=float)
    loss = np.asarray(metric, dtype=float) * (1 if mode == "min" else -1)
    known = np.isfinite(cost) & np.isfinite(loss)
    # Entry (i, j): point j is no worse than point i in both, and better in one.
    no_worse = (cost[None] <= cost[:, None]) & (loss[None] <= loss[:, None])
    better = (cost[None] < cost[:, None]) | (loss[None] < loss[:, None])
    return np.asarray(known & ~(no_worse & better & known[None]).any(axis=1))


def candidates(sweep: Sweep) -> pd.DataFrame:
    """Return the trials that completed, with one latency for each student.

    The accuracy of a stopped trial is that of fewer epochs. And latencies of one student differ by noise alone, which
    would put it on the front several times; each takes the median of its own.
    """
    completed = sweep.ended[sweep.ended["status"] == "completed"]
    decide = [key for key in sweep.keys if key.startswith(("student.", "data."))]
    latency = completed.groupby(["parameters", *decide], dropna=False)["latency_ms"].transform("median")
    return completed.assign(latency_ms=latency)


def swept_costs(trials: pd.DataFrame) -> list[str]:
    """Return the costs that differ between candidates; none where the sweep left the student's size alone."""
    if trials["parameters"].nunique() < 2:
        return []
    return [name for name in COSTS if trials[name].nunique() > 1]


def fronts(sweep: Sweep) -> pd.DataFrame:
    """Return the candidates on the front of at least one cost, smallest first; column ``fronts`` lists those costs."""
    trials = candidates(sweep)
    costs = swept_costs(trials)
    on = {cost: pareto_front(trials[cost].tolist(), trials[sweep.metric].tolist(), sweep.mode) for cost in costs}
    named = [", ".join(cost.removesuffix("_ms") for cost in costs if on[cost][place]) for place in range(len(trials))]
    table = trials.assign(fronts=pd.Series(named, index=trials.index, dtype=object))
    return table[table["fronts"] != ""].sort_values(["parameters", "latency_ms"], kind="stable")
