"""Reads what a sweep leaves behind, in today's layout and in earlier ones with other columns."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from raydistill.errors import DataError
from raydistill.reporting.reading import Metrics, json_lines, read, section

BASELINE = "0000"
"""The trial of the experiment as it stands; sweeps of earlier versions have none, and longer ids."""

NUMBERS = ("epochs", "seconds", "parameters", "latency_ms")
"""Columns of ``trials.csv`` that are numbers whatever was swept; later ones may be missing."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep leaves behind.

    Attributes:
        trials: ``trials.csv``; columns that it lacks are empty, and a metric that is not finite is missing.
        metric: the column that trials are compared by.
        mode: ``max`` or ``min``.
        space: swept key -> its range, as in the experiment.
        histories: trial -> its epochs, where they are kept.
        epochs: how many epochs a trial that is never stopped has; 0 where the experiment does not say.
        rungs: epochs after which ASHA decides who goes on.
        finalists: one row for each re-training, with columns trial, seed and the metric.
        result: ``result.json``.
    """

    trials: pd.DataFrame
    metric: str
    mode: str
    space: Mapping[str, Mapping[str, Any]]
    histories: Mapping[str, tuple[Metrics, ...]]
    epochs: int = 0
    rungs: tuple[int, ...] = ()
    finalists: pd.DataFrame | None = None
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """Swept keys that ``trials.csv`` has values of."""
        return [key for key in self.space if key in self.trials.columns]

    @property
    def ended(self) -> pd.DataFrame:
        """Trials that did not fail and have a metric, in the order of ``trials.csv``."""
        return self.trials[self.trials["status"].isin(["completed", "stopped"]) & self.trials[self.metric].notna()]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """Row of the trial that the sweep chose, or else of the one with the best metric; None where none ended."""
        ended = self.ended
        if ended.empty:
            return None
        # With finalists the choice is by their mean over seeds, not by the metric of the sweep.
        chosen = ended[ended["trial"] == str(self.result.get("best_trial"))]
        metric = ended[self.metric]
        position = int(metric.argmin() if self.mode == "min" else metric.argmax())
        return _row(chosen.iloc[0] if len(chosen) else ended.iloc[position])

    @property
    def baseline(self) -> Mapping[str, Any] | None:
        """Row of the experiment as it stands, or None where it failed or was not run."""
        ended = self.ended
        found = ended[ended["trial"] == BASELINE]
        return _row(found.iloc[0]) if len(found) else None


def read_sweep(path: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> Sweep:
    """Read a finished sweep.

    Raises:
        DataError: one line that says what is wrong with the folder.
    """
    tune = section(config, "tune")
    metric = str(tune.get("metric", "val/top1"))
    numbers = (*NUMBERS, metric)
    trials = read(path / "trials.csv", partial(_table, needs=("trial", "status", "epochs", metric), numbers=numbers))
    trials = trials.assign(**{name: math.nan for name in NUMBERS if name not in trials})
    trials = trials.assign(epochs=trials["epochs"].fillna(0).astype(int))
    finalists = path / "finalists.csv"
    epochs = _whole(section(config, "train").get("epochs"))
    return Sweep(
        trials=trials,
        metric=metric,
        mode=str(tune.get("mode", "max")),
        space=_space(section(tune, "space"), trials),
        histories=_histories(path / "trials", trials),
        epochs=epochs,
        rungs=_rungs(section(tune, "scheduler"), epochs),
        finalists=read(finalists, partial(_table, needs=("trial", "seed", metric), numbers=(metric,)))
        if finalists.is_file()
        else None,
        result=result,
    )


def _table(text: str, needs: Iterable[str], numbers: Iterable[str]) -> pd.DataFrame:
    # Trial ids are names, although "0003" looks like a number, and a choice may be called "None" or "NA".
    names = {"trial": str, "status": str, "cause": str}
    table = pd.read_csv(io.StringIO(text), dtype=names, keep_default_na=False, na_values=[""])
    missing = [name for name in needs if name not in table.columns]
    if missing:
        raise ValueError(f"it has no column {missing[0]}")
    for name in (name for name in numbers if name in table.columns):
        table[name] = pd.to_numeric(table[name], errors="coerce").astype(float).replace([math.inf, -math.inf], math.nan)
    return table.assign(trial=table["trial"].fillna("?"))


def _space(space: Mapping[str, Any], trials: pd.DataFrame) -> dict[str, Mapping[str, Any]]:
    """Return the range of each key; keys of a ready-made space are those that ``trials.csv`` has columns of."""
    ranges: dict[str, Mapping[str, Any]] = {}
    for key, given in space.items():
        if isinstance(given, dict):
            ranges[key] = given
        else:
            ranges |= {column: ranges.get(column, {}) for column in trials.columns if column.startswith(f"{key}.")}
    return ranges


def _histories(folder: Path, trials: pd.DataFrame) -> dict[str, tuple[Metrics, ...]]:
    found: dict[str, tuple[Metrics, ...]] = {}
    for trial, status, epochs in zip(trials["trial"], trials["status"], trials["epochs"], strict=True):
        file = folder / trial / "metrics.jsonl"
        try:
            history: tuple[Metrics, ...] = read(file, json_lines, otherwise=())
        except DataError:
            # A trial that was killed may have left half a line; its sweep is whole nevertheless.
            if status != "failed":
                raise
            continue
        # Until it was told to stop, a trial may have gone on; that is not counted.
        found[trial] = history[:epochs] if status == "stopped" else history
    return {trial: history for trial, history in found.items() if history}


def _rungs(scheduler: Mapping[str, Any], epochs: int) -> tuple[int, ...]:
    """Return grace * reduction^k epochs, below the length of a trial."""
    rung, reduction = _whole(scheduler.get("grace")), _whole(scheduler.get("reduction"))
    if scheduler.get("name") != "asha" or rung < 1 or reduction < 2:
        return ()
    rungs = []
    while rung < epochs:
        rungs.append(rung)
        rung *= reduction
    return tuple(rungs)


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _row(row: pd.Series) -> dict[str, Any]:
    return {str(key): value for key, value in row.items()}
