"""What a service is told that keeps runs, such as Weights & Biases or MLflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

Status = Literal["finished", "failed", "stopped"]
"""The last one is of a run that was interrupted, and of a trial that a sweep gave up."""

_MODULES = {"wandb": "raydistill.training.wandb_tracker", "mlflow": "raydistill.training.mlflow_tracker"}


@dataclass(frozen=True)
class About:
    """What a tracker is told of a run at its beginning.

    Attributes:
        name: of the experiment.
        kind: ``train``, ``teacher``, ``tune`` or ``trial``.
        folder: of the run.
        values: the resolved configuration with dotted keys.
        sweep: name of the sweep that a trial belongs to.
        parent: the tracker's own id of that sweep.
    """

    name: str
    kind: str
    folder: Path
    values: Mapping[str, Any]
    sweep: str | None = None
    parent: str | None = None


class TrackedRun(Protocol):
    """A run at a tracker's; every method raises what the tracker does."""

    def log(self, metrics: Mapping[str, float], epoch: int) -> None:
        """Tell the metrics of an epoch, counted from 1."""

    def end(self, status: Status, summary: Mapping[str, Any], files: list[Path]) -> None:
        """Tell how it ended, with what stands in ``result.json``."""


class Tracker(Protocol):
    """A service that keeps runs.

    Attributes:
        follows_sweeps: whether a sweep is a run of its own there, which those of its trials belong to.
    """

    follows_sweeps: bool

    def begin(self, about: About, known: str | None, keep: Callable[[str], None]) -> TrackedRun:
        """Begin a run, or go on with a ``known`` one; the id of a new one goes to ``keep`` as soon as there is one."""


def build_tracker(name: str, config: Any) -> Tracker:
    """Return a tracker by the name and the values of its section; this imports its package."""
    tracker: Tracker = import_module(_MODULES[name]).tracker_of(config)
    return tracker
