"""What a user sees of a sweep: a table of its trials at a terminal, and lines for what is new everywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from raydistill.display import Log, duration, redrawn, say, say_notices, tell

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.training.run_folder import RunFolder
    from raydistill.tuning.trial_folder import TrialFolder

_ROWS = 20
_SECONDS_BETWEEN_LOOKS = 1.0
_STYLES = {"running": "", "completed": "green", "stopped": "dim", "failed": "red"}


@dataclass(frozen=True)
class _Trial:
    name: str
    values: str
    status: str
    cause: str | None
    epochs: int
    of: int
    metric: float | None
    seconds: float

    @property
    def left(self) -> float | None:
        """Seconds to the last epoch, if it gets so far."""
        running = self.status == "running" and self.epochs
        return (self.of - self.epochs) * self.seconds / self.epochs if running else None


@contextmanager
def sweep(experiment: Experiment) -> Iterator[Callable[[RunFolder], None]]:
    """Show a sweep; a line for each new best, for each failed trial, and for what the sweep has to say."""
    assert experiment.tune is not None
    view, log = _View(experiment), Log()
    with redrawn(f"{experiment.name}: starting Ray ...") as draw:

        def watch(folder: RunFolder) -> None:
            table = view.look(folder)
            if table is not None:
                draw(table)
                log.tell(str(table.title))

        yield watch


class _View:
    """Reads the trials' folders now and then; those that are over are read once."""

    def __init__(self, experiment: Experiment) -> None:
        assert experiment.tune is not None
        self._experiment, self._config = experiment, experiment.tune
        self._sign = 1.0 if experiment.tune.mode == "max" else -1.0
        self._noticed, self._looked = 0, 0.0
        self._over: dict[str, _Trial] = {}
        self._best: float | None = None

    def look(self, folder: RunFolder) -> Table | None:
        """Say what is new; return the table of trials, if there is one and it is time."""
        from raydistill.tuning.trial_folder import finalists_of, read_state, trials_of

        self._noticed = say_notices(self._experiment, folder, self._noticed)
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS and not folder.succeeded:
            return None
        self._looked = time.monotonic()
        found = [*trials_of(folder.path), *finalists_of(folder.path)]
        trials = [self._read(trial) for trial in found]
        return self._table(trials, read_state(folder.path)) if trials else None

    def _read(self, folder: TrialFolder) -> _Trial:
        name = folder.path.name
        if name in self._over:
            return self._over[name]
        record, history = folder.record, folder.history()
        last: Mapping[str, float] = history[-1] if history else {}
        trial = _Trial(
            name=name,
            values=", ".join(f"{key}={_short(value)}" for key, value in record["values"].items()) or "as it stands",
            status=record["status"],
            cause=record["cause"],
            epochs=len(history),
            of=int(record["values"].get("train.epochs", self._experiment.train.epochs)),
            metric=last.get(self._config.metric),
            seconds=sum(epoch["seconds"] for epoch in history),
        )
        self._tell(trial)
        if trial.status != "running":
            self._over[name] = trial
        return trial

    def _tell(self, trial: _Trial) -> None:
        if trial.status == "failed":
            say(f"{self._experiment.name}: trial {trial.name} failed: {trial.cause}  ({trial.values})")
        value = trial.metric
        better = value is not None and (self._best is None or self._sign * value > self._sign * self._best)
        if value is not None and better and math.isfinite(value):
            self._best = value
            tell(
                f"{self._experiment.name}: best so far {value:.2f} by trial {trial.name} after epoch {trial.epochs}"
                f"  ({trial.values})"
            )

    def _table(self, trials: list[_Trial], state: Mapping[str, Any]) -> Table:
        best = "" if self._best is None else f", best so far {self._best:.2f}"
        begun = f"{len(trials)} of {state.get('total', '?')} begun"
        table = Table(
            "trial",
            "values",
            "epoch",
            self._config.metric,
            "time left",
            title=f"{self._experiment.name}: {begun}{_left(trials, state)}{best}",
        )
        running = [trial for trial in trials if trial.status == "running"]
        others = [trial for trial in trials if trial.status != "running"]
        for trial in (others[-max(0, _ROWS - len(running)) :] if len(running) < _ROWS else []) + running[:_ROWS]:
            table.add_row(
                trial.name,
                trial.values,
                f"{trial.epochs}/{trial.of}",
                "" if trial.metric is None else f"{trial.metric:.2f}",
                duration(trial.left) if trial.left is not None else trial.status,
                style=_STYLES[trial.status],
            )
        return table


def _left(trials: list[_Trial], state: Mapping[str, Any]) -> str:
    """Say about how long the sweep will take yet, as soon as a few trials are over."""
    over = [trial.seconds for trial in trials if trial.status != "running"]
    if len(over) < 2 or "slots" not in state:
        return ""
    waiting = (state["total"] - len(over)) * sum(over) / len(over) / state["slots"]
    return f", about {duration(waiting)} left"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
