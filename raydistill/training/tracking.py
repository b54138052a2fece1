"""Weights & Biases and MLflow, told of runs by the process that watches them.

What a tracker gets stands in the run's folder first, so no worker knows of one: a thread of the watching process looks
there now and then, begins where the last one ended, and tries again what did not work. A tracker that is slow or gone
costs the training nothing.
"""

from __future__ import annotations

import csv
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import yaml

from raydistill.config import Experiment, flatten
from raydistill.errors import ConfigError
from raydistill.files import write_atomically
from raydistill.training.run_folder import CONFIG, RunFolder

Status = Literal["finished", "failed", "stopped"]
"""The last one is of a run that was interrupted, and of a trial that a sweep gave up."""

LOOK_EVERY_S = 1.0
TRY_AGAIN_AFTER_S = 30.0
WAIT_AT_THE_END_S = 30.0
FILES = (CONFIG, "result.json", "metrics.csv", "trials.csv", "best.yaml")
"""What a tracker gets of a finished run, as far as it is there."""


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


MODULES = {"wandb": "raydistill.training.wandb_tracker", "mlflow": "raydistill.training.mlflow_tracker"}


def check_trackers(experiment: Experiment) -> None:
    """Raise ``ConfigError`` where a tracker that the experiment names is not installed."""
    for name in experiment.track.asked:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            raise ConfigError(f"track.{name}: {name} is not installed; pip install 'raydistill[tracking]'")


@contextmanager
def tracked(experiment: Experiment, folder: RunFolder, *, kind: str) -> Iterator[None]:
    """Let the experiment's trackers follow a run, and the trials of a sweep, for as long as the context lasts.

    At its end they get half a minute to tell the rest. What goes wrong is one notice in the folder.
    """
    threads = [
        _Thread(name, _Follower(name, getattr(experiment.track, name), folder, kind)) for name in experiment.track.asked
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    except BaseException as error:
        _finish(threads, "failed" if isinstance(error, Exception) else "stopped")
        raise
    _finish(threads, "finished")


def _finish(threads: list[_Thread], status: Status) -> None:
    for thread in threads:
        thread.finish(status)
    for thread in threads:
        thread.wait()


class _Thread(threading.Thread):
    """Looks at a run's folder until the run is over; a daemon, so that a tracker that hangs holds nobody up."""

    def __init__(self, name: str, follower: _Follower) -> None:
        super().__init__(name=f"tracker-{name}", daemon=True)
        self._label, self._follower = name, follower
        self._over = threading.Event()
        self._status: Status = "finished"
        self._noted = False

    def run(self) -> None:
        pause = LOOK_EVERY_S
        while not self._over.wait(pause):
            pause = LOOK_EVERY_S if self._try(self._follower.look) else TRY_AGAIN_AFTER_S
        self._try(lambda: self._follower.end(self._status))

    def finish(self, status: Status) -> None:
        self._status = status
        self._over.set()

    def wait(self) -> None:
        self.join(WAIT_AT_THE_END_S)
        if self.is_alive():
            self._note("did not answer in time")

    def _try(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except BaseException as error:  # a tracker may even want to exit
            first = (str(error).strip().splitlines() or [""])[0]
            self._note(f"{type(error).__name__}: {first}")
            return False
        return True

    def _note(self, reason: str) -> None:
        if not self._noted and self._follower.folder.path.is_dir():
            self._noted = True
            self._follower.folder.note(
                f"track.{self._label}: {reason}. The run goes on; all metrics stand in its own folder"
            )


class _Follower:
    """What one tracker has been told of a run and, where this is a sweep, of its trials.

    How far that is stands in ``logs/<tracker>.json`` of each, so that a resumed run goes on where it was.
    """

    def __init__(self, name: str, config: Any, folder: RunFolder, kind: str, sweep: _Follower | None = None) -> None:
        self.folder = folder
        self._name, self._config, self._kind, self._sweep = name, config, kind, sweep
        self._file = folder.path / "logs" / f"{name}.json"
        self._run: TrackedRun | None = None
        self._trials: dict[Path, _Follower] = {}
        self._ended = False

    @property
    def id(self) -> str | None:
        """Of the run at the tracker's."""
        return self._state().get("id")

    def look(self) -> None:
        """Tell what is new. Libraries are imported no sooner than the first step of training is done."""
        if self._kind == "tune":
            self._look_at_trials()
        elif self.folder.progress():
            self._tell()

    def end(self, status: Status) -> None:
        """Tell what is left, and how it ended; nothing where nothing had begun."""
        if self._ended:
            return
        self.look()
        for path, trial in self._trials.items():
            trial.end(_statuses(self.folder.path).get(path.name, status))
        if self._run is not None:
            files = [path for name in FILES if (path := self.folder.path / name).is_file()]
            self._run.end(status, self.folder.result(), files)
        self._ended = True

    def _look_at_trials(self) -> None:
        for path in sorted((self.folder.path / "trials").glob(f"*/{CONFIG}")):
            if path.parent not in self._trials:
                trial = _Follower(self._name, self._config, RunFolder(path.parent), "trial", self)
                self._trials[path.parent] = trial
        begun = [trial for trial in self._trials.values() if not trial._ended and trial.folder.progress()]
        if begun and self._tracker().follows_sweeps:
            self._begin()
        for trial in begun:
            trial.look()
            if trial.folder.succeeded:
                trial.end("finished")

    def _tell(self) -> None:
        run = self._begin()
        for kind, records in (("stages", self.folder.pretraining()), ("epochs", self.folder.history())):
            for number in range(self._state().get(kind, 0), len(records)):
                run.log(_metrics(records[number]), int(records[number]["epoch"]))
                self._keep({kind: number + 1})

    def _begin(self) -> TrackedRun:
        if self._run is None:
            about = About(
                name=self.folder.path.name,
                kind=self._kind,
                folder=self.folder.path,
                values=flatten(yaml.safe_load((self.folder.path / CONFIG).read_text())),
                sweep=self._sweep.folder.path.name if self._sweep else None,
                parent=self._sweep.id if self._sweep else None,
            )
            self._run = self._tracker().begin(about, self.id, lambda id: self._keep({"id": id}))
        return self._run

    def _tracker(self) -> Tracker:
        tracker: Tracker = import_module(MODULES[self._name]).tracker_of(self._config)
        return tracker

    def _state(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.is_file() else {}

    def _keep(self, values: Mapping[str, Any]) -> None:
        write_atomically(self._file, json.dumps({**self._state(), **values}) + "\n")


def _statuses(sweep: Path) -> dict[str, Status]:
    """How each trial of a finished sweep ended, by its name."""
    if not (sweep / "trials.csv").is_file():
        return {}
    meanings: dict[str, Status] = {"completed": "finished", "stopped": "stopped", "failed": "failed"}
    with (sweep / "trials.csv").open(newline="") as file:
        return {row["trial"]: meanings[row["status"]] for row in csv.DictReader(file)}


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record; those of a stage under its name, as ``stage/<name>/...``."""
    prefix = f"stage/{record['stage']}/" if "stage" in record else ""
    return {
        prefix + name: float(value)
        for name, value in record.items()
        if name not in ("epoch", "stage") and isinstance(value, int | float) and math.isfinite(value)
    }
