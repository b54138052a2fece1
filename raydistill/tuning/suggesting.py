"""Which values the trials of a sweep get, one after the other: the same for the same seed and the same results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydistill.config import Experiment
from raydistill.tuning.samplers import sampler_for
from raydistill.tuning.space import LISTS, LOGARITHMIC, WHOLE, Range, Values, draw, parse_space

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Earlier:
    """What a trial of an earlier sweep found: its values, and the metric."""

    values: Mapping[str, Any]
    metric: float


class Suggestions:
    """Values of trial 0, 1, ...: nothing changed; the best of earlier sweeps; then grid, random numbers, TPE or BOHB.

    The latter two learn, so what they draw depends on the order of calls.
    """

    def __init__(self, experiment: Experiment, earlier: Sequence[Earlier] = ()) -> None:
        """Begin with trial 0. What earlier trials found is known where it fits the space."""
        assert experiment.tune is not None
        self._experiment, self._config = experiment, experiment.tune
        self._ranges = parse_space(experiment)
        self._sampler = sampler_for(
            self._config.search, mode=self._config.mode, dimensions=len(self._ranges), seed=experiment.seed
        )
        known = [old for old in earlier if self._fits(old.values)]
        self._learn(known)
        best_first = sorted(known, key=lambda old: old.metric, reverse=self._config.mode == "max")
        again: list[Mapping[str, Any]] = []
        for old in best_first[: self._config.finalists]:
            if old.values and old.values not in again:
                again.append(old.values)
        self._fixed = [dict(values) for values in again]
        self._grid = list(self._combinations()) * self._config.samples
        self._asked: dict[int, optuna.trial.Trial] = {}

    @property
    def total(self) -> int:
        """Number of trials."""
        return 1 + len(self._fixed) + len(self._grid)

    def ask(self, number: int) -> Values:
        """Return a trial's values; a key that does not count is absent. To be asked in the order of the numbers."""
        if number == 0:
            return {}
        if number <= len(self._fixed):
            return self._fixed[number - 1]
        trial = self._asked[number] = self._sampler.ask()
        combination = self._grid[number - 1 - len(self._fixed)]
        return draw(self._experiment, self._ranges, combination, lambda entry: suggested(trial, entry))

    def report(self, number: int, epoch: int, metric: float) -> None:
        """Learn what a trial has come to by an epoch at which trials are judged."""
        if number in self._asked:
            self._sampler.report(self._asked[number], epoch, metric)

    def tell(self, number: int, metric: float | None) -> None:
        """Learn what a trial ended with; None where it failed."""
        trial = self._asked.pop(number, None)
        if trial is not None:
            self._sampler.tell(trial, metric)

    def _combinations(self) -> Iterator[Values]:
        """Every combination of grid values, those that do not count left out, each once."""
        grids = [entry for entry in self._ranges if entry.kind == "grid"]
        seen: list[Values] = []
        for values in itertools.product(*(entry.values for entry in grids)):
            chosen = dict(zip([entry.key for entry in grids], values, strict=True))
            counted = draw(self._experiment, grids, chosen, lambda entry: None)
            if counted not in seen:
                seen.append(counted)
                yield counted

    def _fits(self, values: Mapping[str, Any]) -> bool:
        """Whether the space could have drawn the values."""
        counted = draw(self._experiment, self._ranges, values, lambda entry: None)
        return counted == dict(values) and all(_inside(entry, values) for entry in self._ranges)

    def _learn(self, earlier: Sequence[Earlier]) -> None:
        from optuna.trial import create_trial

        for old in earlier:
            entries = [entry for entry in self._ranges if entry.key in old.values]
            found = create_trial(
                params={entry.key: _parameter(entry, old.values[entry.key]) for entry in entries},
                distributions={entry.key: distribution(entry) for entry in entries},
                value=old.metric,
            )
            self._sampler.learn(found, self._experiment.train.epochs)


def suggested(trial: optuna.trial.Trial, entry: Range) -> Any:
    """Draw a value of a range."""
    if entry.kind in LISTS:
        return entry.values[trial.suggest_categorical(entry.key, range(len(entry.values)))]
    low, high = entry.extremes
    log = entry.kind in LOGARITHMIC
    if entry.kind in WHOLE:
        return trial.suggest_int(entry.key, low, high, log=log)
    drawn = trial.suggest_float(entry.key, low, high, log=log, step=_step(entry))
    # Optuna has no steps on a logarithmic scale.
    return entry.nearest(drawn) if entry.kind == "qloguniform" else drawn


def distribution(entry: Range) -> optuna.distributions.BaseDistribution:
    """Return optuna's word for a range; a list is one of its positions, as values may be of any kind."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if entry.kind in LISTS:
        return CategoricalDistribution(range(len(entry.values)))
    low, high = entry.extremes
    log = entry.kind in LOGARITHMIC
    if entry.kind in WHOLE:
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log, step=_step(entry))


def _step(entry: Range) -> float | None:
    return entry.values[2] if entry.kind == "quniform" else None


def _parameter(entry: Range, value: Any) -> Any:
    return entry.values.index(value) if entry.kind in LISTS else value


def _inside(entry: Range, values: Mapping[str, Any]) -> bool:
    if entry.key not in values:
        return True
    value = values[entry.key]
    if entry.kind in LISTS:
        return value in entry.values
    low, high = entry.extremes
    return isinstance(value, int | float) and low <= value <= high
