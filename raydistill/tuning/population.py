"""Population based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846), as Ray does it.

After every generation, once all trials are paused at its last epoch, the worst quarter of them take over what trials of
the best quarter have learnt, and go on from there with other values. So decisions follow from reports and seed alone,
however fast trials are and however many of them run at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune as ray_tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from raydistill.config import Experiment
from raydistill.tuning.space import LISTS, Range, Values, parse_space, value_at

EPOCH = "epoch"


class Population(PopulationBasedTraining):  # type: ignore[misc]  # Ray has no types
    """Ray's scheduler, with generations that a trial which fails does not hold up.

    Ray lets the report that comes last decide for all, and waits for ever where the awaited trial ends without one
    (``synch=True``). Here whoever asks for the next trial to run finds that all are there. Trial 0 stays as it began,
    so that there is something to compare with: others may take over from it, but it does not from them.
    """

    def __init__(self, experiment: Experiment, more: Callable[[], bool]) -> None:
        """``more`` tells whether another trial will begin, for which the first generation waits."""
        assert experiment.tune is not None
        self._ranges = parse_space(experiment)
        super().__init__(
            time_attr=EPOCH,
            perturbation_interval=experiment.tune.scheduler.grace,
            hyperparam_mutations={"values": {entry.key: _mutation(entry) for entry in self._ranges}},
            log_config=False,
            synch=True,
        )
        self._usual = {entry.key: value_at(experiment, entry.key) for entry in self._ranges}
        self._seed, self._more = experiment.seed, more

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial joins; one whose process died comes back as what it was."""
        if trial not in self._trial_state:
            # Ray refuses searchers here: most would learn from values that change. Ours only draws the first ones.
            super().on_trial_add(SimpleNamespace(search_alg=None), trial)
            # Ray ends processes of paused trials for which no other trial waits; the next generation needs them again.
            tune_controller._tune_controller._actor_cache.increase_max(trial.placement_group_factory)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: Mapping[str, Any]) -> str:
        """Pause at the end of the generation."""
        if result[EPOCH] < self._next_perturbation_sync:
            return str(TrialScheduler.CONTINUE)
        self._save_trial_state(self._trial_state[trial], result[EPOCH], result, trial)
        return str(TrialScheduler.PAUSE)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return a trial that is not at the end of the generation; when all are, begin the next one."""
        alive = [trial for trial in self._trial_state if not trial.is_finished()]
        if alive and not self._more() and all(self._waits(trial) for trial in alive):
            with drawing_from(f"{self._seed} {self._next_perturbation_sync}"):
                worst, best = self._quantiles()
                for trial in (*best, *worst):
                    self._checkpoint_or_exploit(trial, tune_controller, best, worst)
            self._next_perturbation_sync += self._perturbation_interval
        chosen: Trial | None = super().choose_trial_to_run(tune_controller)
        return chosen

    def _waits(self, trial: Trial) -> bool:
        arrived: bool = self._trial_state[trial].last_train_time >= self._next_perturbation_sync
        return arrived and bool(trial.status == Trial.PAUSED)

    def _quantiles(self) -> tuple[list[Trial], list[Trial]]:
        """The worst and the best trials; Ray asks for them."""
        worst, best = super()._quantiles()
        return [trial for trial in worst if trial.config["number"]], best

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a trial's own job with values near to those of the other; Ray would make it the other's job."""
        values = {**self._usual, **trial_to_clone.config["values"]}
        source = SimpleNamespace(config={**trial_to_clone.config, "values": values})
        changed, operations = super()._get_new_config(trial, source)
        return {**trial.config, "values": within(self._ranges, changed["values"])}, operations


def _mutation(entry: Range) -> Any:
    """Return Ray's word for a range: of a list it takes neighbours, of anything else multiples."""
    return list(entry.values) if entry.kind in LISTS else getattr(ray_tune, entry.kind)(*entry.values)


def within(ranges: tuple[Range, ...], values: Mapping[str, Any]) -> Values:
    """Put values that were multiplied back into their ranges, and onto their steps."""
    return {entry.key: _within(entry, values[entry.key]) for entry in ranges}


def _within(entry: Range, value: Any) -> Any:
    return value if entry.kind in LISTS else float(entry.nearest(value))


@contextmanager
def drawing_from(seed: str) -> Iterator[None]:
    """Let the generators of the process, from which Ray draws, begin at a seed; leave them as they were before."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
