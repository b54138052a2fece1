"""How much of a sweep's outcome hangs on each swept key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydistill.reporting.sweeps import Sweep
from raydistill.reporting.swept import SweptKey, swept_keys

LEAST_TRIALS = 8
"""Below this number of trials that ended a forest has nothing to learn from."""


@dataclass(frozen=True)
class Importances:
    """What a random forest that predicts a trial's rank from its swept values relies on.

    Attributes:
        keys: dotted keys, the most important one first.
        means: how far the forest's R^2 falls where a key's values are shuffled among the trials; mean of 10 shuffles.
        spreads: standard deviations of those.
        explained: R^2 of the forest on trials that its trees have not seen (out of bag); at or below 0 it has learned
            nothing, and the importances say nothing.
        completed: how many trials that completed it learned from.
        stopped: how many that were stopped, with their last value.
    """

    keys: tuple[str, ...]
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    explained: float
    completed: int
    stopped: int

    @property
    def is_evidence(self) -> bool:
        """Whether the forest has learned anything."""
        return self.explained > 0


def importances(sweep: Sweep) -> Importances | None:
    """Return the permutation importances (Breiman, Random Forests, 2001) of the swept keys.

    A forest rather than Optuna's fANOVA, for it keeps keys whose condition does not always hold, which Optuna leaves
    out, and takes the baseline, which may lie outside of the ranges; and its out-of-bag score says whether to believe
    it. Logarithms make no difference to trees. Where a key was not set it takes the value of some trial that set it,
    drawn at random, so that its absence, which another key decides, does not count as its own effect. Ranks rather
    than values, for the few points between good trials are what matters, and beside trials of one epoch or diverged
    ones they would vanish.

    Returns:
        None for fewer than ``LEAST_TRIALS`` trials, fewer than two keys that vary, or a metric that does not.
    """
    ended = sweep.ended
    keys = [key for key in swept_keys(sweep) if key.places.nunique() > 1]
    if len(ended) < LEAST_TRIALS or len(keys) < 2 or ended[sweep.metric].nunique() < 2:
        return None
    # scikit-learn takes most of a second to import.
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    values, target = _features(keys), ended[sweep.metric].rank().to_numpy(dtype=float)
    forest = RandomForestRegressor(n_estimators=100, oob_score=True, random_state=0).fit(values, target)
    found = permutation_importance(forest, values, target, n_repeats=10, random_state=0)
    order = np.argsort(-found.importances_mean)
    stopped = int((ended["status"] == "stopped").sum())
    return Importances(
        keys=tuple(keys[place].key for place in order),
        means=tuple(float(found.importances_mean[place]) for place in order),
        spreads=tuple(float(found.importances_std[place]) for place in order),
        explained=float(forest.oob_score_),
        completed=len(ended) - stopped,
        stopped=stopped,
    )


def honest_words(found: Importances) -> str:
    """Return what the importances rest on, and whether they can be believed."""
    said = f"From {found.completed + found.stopped} trials"
    if found.stopped:
        said += f", {found.stopped} of them stopped early and ranked by their last value"
    score = f"R²\N{NO-BREAK SPACE}{found.explained:.2f}"
    if not found.is_evidence:
        return (
            f"{said}: a random forest cannot predict the rank of a trial that it has not seen ({score}), so the "
            "importances would be no evidence and are left out."
        )
    return (
        f"{said}: how much worse a random forest predicts a trial's rank (fall of R²) once a key's values are "
        f"shuffled. On trials that it has not seen it reaches {score} of 1; the less that is, the less the importances "
        "say."
    )


def _features(keys: Sequence[SweptKey]) -> np.ndarray:
    draw = np.random.default_rng(0)
    columns = [key.places.to_numpy(dtype=float, copy=True) for key in keys]
    for column in columns:
        absent = np.isnan(column)
        column[absent] = draw.choice(column[~absent], size=int(absent.sum()))
    return np.stack(columns, axis=1)
