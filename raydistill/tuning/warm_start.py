"""What earlier sweeps found, for a new one to begin with."""

from __future__ import annotations

import math
from pathlib import Path

from raydistill.config import Experiment
from raydistill.errors import ConfigError
from raydistill.tuning.suggesting import Earlier
from raydistill.tuning.trial_folder import trials_of


def earlier_trials(experiment: Experiment) -> list[Earlier]:
    """Return values and metric of every trial that came to its end in the folders of ``tune.warm_start``.

    Those of a sweep by pbt whose values changed on the way say nothing about the last ones, and are left out.

    Raises:
        ConfigError: where a folder holds no sweep, or none of its trials has the metric.
    """
    assert experiment.tune is not None
    found: list[Earlier] = []
    for name in experiment.tune.warm_start:
        trials = trials_of(Path(name))
        if not trials:
            raise ConfigError(f"tune.warm_start: {name} holds no sweep; name the folder of one, such as runs/<name>")
        ended = [trial for trial in trials if trial.record["status"] == "completed" and "changes" not in trial.record]
        metrics = [(trial, trial.history()[-1].get(experiment.tune.metric, math.nan)) for trial in ended]
        here = [Earlier(trial.record["values"], metric) for trial, metric in metrics if math.isfinite(metric)]
        if not here:
            raise ConfigError(
                f"tune.warm_start: no trial of {name} came to its end with {experiment.tune.metric}; leave it out"
            )
        found.extend(here)
    return found
