"""Who draws the values of a trial: chance, TPE, or BOHB. All are Optuna's (https://arxiv.org/abs/1907.10902)."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

Mode = Literal["max", "min"]

RANDOM_PART = 1 / 3
CANDIDATES = 64
"""As in the code of BOHB's authors."""


class Sampler(Protocol):
    """Draws, and learns from what comes of it; the same for the same seed and the same calls in the same order."""

    def ask(self) -> Trial:
        """Return a trial that is to draw its values."""

    def learn(self, found: FrozenTrial, epochs: int) -> None:
        """Learn what a trial of an earlier sweep found after so many epochs."""

    def report(self, trial: Trial, epoch: int, metric: float) -> None:
        """Learn what a trial has come to on its way, or at its end."""

    def tell(self, trial: Trial, metric: float | None) -> None:
        """Learn what a trial ended with; None where it failed."""


def sampler_for(search: Literal["random", "tpe", "bohb"], *, mode: Mode, dimensions: int, seed: int) -> Sampler:
    """Return the sampler of a sweep over so many keys."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if search == "bohb":
        return Bohb(mode, dimensions, seed)
    if search == "tpe":
        return Plain(optuna.samplers.TPESampler(seed=seed), mode)
    return Plain(optuna.samplers.RandomSampler(seed=seed), mode)


class Plain:
    """Learns, if it learns, from what trials ended with, whenever that was: TPE (Bergstra et al. 2011), or chance."""

    def __init__(self, sampler: BaseSampler, mode: Mode) -> None:
        """Begin with no trial."""
        self._study = _study(sampler, mode)

    def ask(self) -> Trial:
        """Return a trial that is to draw its values."""
        return self._study.ask()

    def learn(self, found: FrozenTrial, epochs: int) -> None:
        """Learn what a trial of an earlier sweep found."""
        self._study.add_trial(found)

    def report(self, trial: Trial, epoch: int, metric: float) -> None:
        """Learn nothing before the end."""

    def tell(self, trial: Trial, metric: float | None) -> None:
        """Learn what a trial ended with."""
        from optuna.trial import TrialState

        failed = metric is None or not math.isfinite(metric)
        self._study.tell(trial, None if failed else metric, TrialState.FAIL if failed else TrialState.COMPLETE)


class Bohb:
    """BOHB's choice of values: Falkner et al., ICML 2018, https://arxiv.org/abs/1807.01774, Algorithm 2.

    A third of the draws is left to chance. The others follow densities of good and bad values after as many epochs as
    enough trials have come to, d + 3 of d keys: what a value does for long trials is asked of short ones only until
    long ones can tell. The densities are those of Optuna's TPE over all keys together, not the authors' own, so
    their widths differ, and the best tenth counts as good where the paper takes 15 %.
    """

    def __init__(self, mode: Mode, dimensions: int, seed: int) -> None:
        """Begin with no trial."""
        import optuna

        self._enough = dimensions + 3
        self._coin = np.random.default_rng(seed)
        self._chance = _study(optuna.samplers.RandomSampler(seed=seed), mode)
        self._after: dict[int, Study] = defaultdict(
            lambda: _study(
                optuna.samplers.TPESampler(
                    multivariate=True, n_startup_trials=0, n_ei_candidates=CANDIDATES, constant_liar=False, seed=seed
                ),
                mode,
            )
        )
        self._found: dict[int, int] = defaultdict(int)

    def ask(self) -> Trial:
        """Return a trial that is to draw its values."""
        by_chance = self._coin.random() < RANDOM_PART
        known = [epochs for epochs, count in self._found.items() if count >= self._enough]
        return self._chance.ask() if by_chance or not known else self._after[max(known)].ask()

    def learn(self, found: FrozenTrial, epochs: int) -> None:
        """Learn what a trial found after so many epochs."""
        self._after[epochs].add_trial(found)
        self._found[epochs] += 1

    def report(self, trial: Trial, epoch: int, metric: float) -> None:
        """Learn what a trial has come to."""
        from optuna.trial import create_trial

        self.learn(create_trial(params=trial.params, distributions=trial.distributions, value=metric), epoch)

    def tell(self, trial: Trial, metric: float | None) -> None:
        """Learn nothing new at the end."""


def _study(sampler: BaseSampler, mode: Mode) -> Study:
    import optuna

    return optuna.create_study(sampler=sampler, direction="maximize" if mode == "max" else "minimize")
