"""Runs at MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException

from raydistill.track_config import MlflowConfig
from raydistill.training.trackers import About, Status

STATUSES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
AT_ONCE = 100
"""More parameters the interface does not take."""
LONGEST = 500
"""Characters of a parameter's value that every version of a server takes."""


def tracker_of(config: MlflowConfig) -> MlflowTracker:
    """Return the tracker of an experiment's section."""
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):  # whatever goes wrong is raised too
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowTracker(config)


class MlflowTracker:
    """See ``trackers.Tracker``; the trials of a sweep are nested in a run of its own."""

    follows_sweeps = True

    def __init__(self, config: MlflowConfig) -> None:
        """Nothing is begun yet."""
        self._config = config

    def begin(self, about: About, known: str | None, keep: Callable[[str], None]) -> MlflowRun:
        """See ``trackers.Tracker``; of a known run parameters stay as they are, which MLflow does not let change."""
        client = MlflowClient(tracking_uri=self._config.uri)
        if known is None:
            tags = {**self._config.tags, "raydistill.kind": about.kind, "raydistill.folder": str(about.folder)}
            tags |= {"mlflow.parentRunId": about.parent} if about.parent else {}
            run = client.create_run(self._experiment(client), run_name=about.name, tags=tags)
            keep(run.info.run_id)
        else:
            run = client.get_run(known)
            client.update_run(known, status="RUNNING")
        _log_parameters(client, run, about.values)
        return MlflowRun(client, run.info.run_id)

    def _experiment(self, client: MlflowClient) -> str:
        """Return the id of the experiment, which another process may be making at the same time."""
        name = self._config.experiment
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name))
            except MlflowException:
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


class MlflowRun:
    """See ``trackers.TrackedRun``."""

    def __init__(self, client: MlflowClient, run: str) -> None:
        """Go on with a run by its id."""
        self._client, self._id = client, run

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """See ``trackers.TrackedRun``."""
        now = int(time.time() * 1000)
        told = [Metric(_name(name), value, now, epoch) for name, value in metrics.items()]
        self._client.log_batch(self._id, metrics=told)

    def end(self, status: Status, summary: Mapping[str, Any], files: list[Path]) -> None:
        """See ``trackers.TrackedRun``; numbers of the result are metrics ``result/...``."""
        self.log(
            {f"result/{name}": float(value) for name, value in summary.items() if isinstance(value, int | float)}, 0
        )
        try:  # files may go elsewhere than all the rest
            for file in files:
                self._client.log_artifact(self._id, str(file))
        finally:
            self._client.set_terminated(self._id, STATUSES[status])


def _log_parameters(client: MlflowClient, run: Run, values: Mapping[str, Any]) -> None:
    new: Sequence[Param] = [
        Param(name, str(value)[:LONGEST]) for name, value in values.items() if name not in run.data.params
    ]
    for first in range(0, len(new), AT_ONCE):
        client.log_batch(run.info.run_id, params=new[first : first + AT_ONCE])


def _name(metric: str) -> str:
    """Return ``train/kd.entropy`` of ``train/kd/entropy``: in a store of files a metric is no folder of others."""
    group, slash, rest = metric.partition("/")
    return group + slash + rest.replace("/", ".")
