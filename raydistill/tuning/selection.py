"""Which configuration is best, and whether that is more than chance. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05
"""A win is called one where Welch's t-test gives less than this for means that do not differ."""


@dataclass(frozen=True)
class Ending:
    """The metric that a trial came to, and whether that was at its last epoch: it may have been stopped before."""

    metric: float
    whole: bool


def best_first(endings: Mapping[int, Ending], mode: str) -> list[int]:
    """Return the trials by their metric, those that came to their end before those that were stopped."""
    sign = -1.0 if mode == "max" else 1.0
    return sorted(endings, key=lambda trial: (not endings[trial].whole, sign * endings[trial].metric, trial))


@dataclass(frozen=True)
class Standing:
    """A configuration that was trained with several seeds: mean and sample standard deviation of the metric."""

    trial: int
    mean: float
    spread: float
    seeds: int


def standings(found: Mapping[int, Sequence[float]], mode: str) -> list[Standing]:
    """Return the trials by their mean over seeds, the best first."""
    import numpy as np

    made = [
        Standing(trial, float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, len(values))
        for trial, values in found.items()
    ]
    sign = -1.0 if mode == "max" else 1.0
    return sorted(made, key=lambda standing: (sign * round(standing.mean, 9), standing.trial))  # equal up to rounding


def tied_with(found: Mapping[int, Sequence[float]], best: int) -> list[int]:
    """Return the trials whose values the best one's do not differ from by more than seeds do (Welch's t-test).

    With fewer than two values on either side nothing can be told, and all are returned.
    """
    from scipy.stats import ttest_ind

    tied = []
    for trial, values in found.items():
        if trial == best:
            continue
        if min(len(values), len(found[best])) < 2:
            tied.append(trial)
            continue
        if len(set(values)) == len(set(found[best])) == 1:  # no spread at all, of which the test can say nothing
            if values[0] == found[best][0]:
                tied.append(trial)
        elif ttest_ind(values, found[best], equal_var=False).pvalue >= LEVEL:
            tied.append(trial)
    return tied
