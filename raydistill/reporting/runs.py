"""Reads finished run folders; every mistake a folder can hold becomes one line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml

from raydistill.errors import DataError

Metrics = Mapping[str, Any]
"""One epoch of ``metrics.jsonl``."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sweep:
    """What a sweep leaves behind: ``trials.csv``, what was swept, and the epochs of each trial, if kept."""

    trials: pd.DataFrame
    metric: str
    mode: str
    space: Mapping[str, Mapping[str, Any]]
    histories: Mapping[str, tuple[Metrics, ...]]

    @property
    def keys(self) -> list[str]:
        """Swept keys that ``trials.csv`` has values of."""
        return [key for key in self.space if key in self.trials.columns]

    @property
    def ended(self) -> pd.DataFrame:
        """Trials that did not fail and have a metric, in the order of ``trials.csv``."""
        return self.trials[(self.trials["status"] != "failed") & self.trials[self.metric].notna()]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """Row of the best trial, or None where no trial ended."""
        ended = self.ended
        if ended.empty:
            return None
        metric = ended[self.metric]
        position = int(metric.argmin() if self.mode == "min" else metric.argmax())
        return {str(key): value for key, value in ended.iloc[position].items()}


@dataclass(frozen=True)
class RunRecord:
    """One finished run folder."""

    path: Path
    kind: str
    name: str
    seed: int | None
    student: str
    methods: tuple[str, ...]
    top1: float | None
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: tuple[Metrics, ...] = ()
    card: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sweep: Sweep | None = None

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return int(self.result.get("epochs") or len(self.metrics))


def load_run(path: str | Path) -> RunRecord:
    """Read a finished run folder.

    Raises:
        DataError: one line that says what is wrong with the folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"{path}: not a run folder: there is no such directory")
    if not any((path / name).exists() for name in ("config.yaml", "result.json", "_SUCCESS")):
        raise DataError(f"{path}: not a run folder: it holds neither config.yaml nor result.json")
    if not (path / "_SUCCESS").is_file():
        raise DataError(f"{path}: the run has not finished (it has no _SUCCESS); resume it with --resume")
    result = _read(path / "result.json", _json_object)
    config = _read(path / "config.yaml", _yaml_object)
    kind = str(result.get("kind", "train"))
    return RunRecord(
        path=path,
        kind=kind,
        name=str(result.get("name") or path.name),
        seed=result.get("seed", config.get("seed")),
        student=str(result.get("student") or _section(config, "student").get("model") or "student"),
        methods=tuple(map(str, result.get("methods") or _section(config, "methods"))),
        top1=_number(result.get("top1")),
        config=config,
        environment=_read(path / "environment.json", _json_object, otherwise={}),
        result=result,
        metrics=_read(path / "metrics.jsonl", _json_lines, otherwise=()),
        card=_read(path / "card.json", _card, otherwise={}),
        sweep=_sweep(path, config) if kind == "tune" else None,
    )


def load_runs(paths: Iterable[str | Path]) -> list[RunRecord]:
    """Read several run folders; a folder given twice counts once, or it would look like a second seed.

    Raises:
        DataError: with one line for each folder that cannot be read, or where none is given.
    """
    unique = {Path(path).resolve(): Path(path) for path in paths}
    records, problems = [], []
    for path in unique.values():
        try:
            records.append(load_run(path))
        except DataError as error:
            problems.append(str(error))
    if not unique:
        problems.append("no run folder given")
    if problems:
        raise DataError("\n".join(problems))
    return records


def _read(path: Path, parse: Callable[[str], _T], otherwise: _T | None = None) -> _T:
    if otherwise is not None and not path.is_file():
        return otherwise
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path.parent}: the run is damaged: {path.name} is missing") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path.parent}: the run is damaged: {path.name} cannot be read: {reason}") from None


def _json_object(text: str) -> dict[str, Any]:
    return _mapping(json.loads(text))


def _yaml_object(text: str) -> dict[str, Any]:
    return _mapping(yaml.safe_load(text))


def _json_lines(text: str) -> tuple[Metrics, ...]:
    return tuple(_json_object(line) for line in text.splitlines() if line.strip())


def _card(text: str) -> dict[str, dict[str, Any]]:
    return {role: _mapping(values) for role, values in _json_object(text).items()}


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a mapping was expected, not {type(value).__name__}")
    return value


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]


def _sweep(path: Path, config: Mapping[str, Any]) -> Sweep:
    tune = _section(config, "tune")
    metric = str(tune.get("metric", "val/top1"))

    def parse(text: str) -> pd.DataFrame:
        # Trial ids are names, although "00003" looks like a number.
        trials = pd.read_csv(io.StringIO(text), dtype={"trial": str})
        missing = [name for name in ("trial", "status", "epochs", metric) if name not in trials.columns]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        return trials

    trials = _read(path / "trials.csv", parse)
    histories: dict[str, tuple[Metrics, ...]] = {}
    for trial in map(str, trials["trial"]):
        file = path / "trials" / trial / "metrics.jsonl"
        histories[trial] = _read(file, _json_lines) if file.is_file() else ()
    return Sweep(
        trials=trials,
        metric=metric,
        mode=str(tune.get("mode", "max")),
        space=_section(tune, "space"),
        histories={trial: history for trial, history in histories.items() if history},
    )
