"""Reads finished run folders; every mistake a folder can hold becomes one line."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from raydistill.errors import DataError
from raydistill.evaluation.card_files import CARD, CORRELATION, DOWNSTREAM, PANELS
from raydistill.evaluation.downstream import FRESH, STUDENT
from raydistill.evaluation.panels import Panels
from raydistill.progress import Progress, counted, unwatched
from raydistill.reporting.predictions import rightness
from raydistill.reporting.reading import Metrics, json_lines, json_object, mapping, read, section, yaml_object
from raydistill.reporting.sweeps import Sweep, read_sweep


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
    rightness: pd.Series | None = field(default=None, repr=False)
    correlation: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    panels: Panels = field(default_factory=Panels, repr=False)

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
    result = read(path / "result.json", json_object)
    config = read(path / "config.yaml", yaml_object)
    kind = str(result.get("kind", "train"))
    return RunRecord(
        path=path,
        kind=kind,
        name=str(result.get("name") or path.name),
        seed=result.get("seed", config.get("seed")),
        student=str(result.get("student") or section(config, "student").get("model") or "student"),
        methods=tuple(map(str, result.get("methods") or section(config, "methods"))),
        top1=_number(result.get("top1")),
        config=config,
        environment=read(path / "environment.json", json_object, otherwise={}),
        result=result,
        metrics=read(path / "metrics.jsonl", json_lines, otherwise=()),
        card=_whole_card(path),
        sweep=read_sweep(path, config, result) if kind == "tune" else None,
        rightness=rightness(path),
        correlation=read(path / CORRELATION, _map, otherwise=pd.DataFrame()),
        panels=read(path / PANELS, Panels.model_validate_json, otherwise=Panels()),
    )


def load_runs(paths: Iterable[str | Path], *, progress: Progress = unwatched) -> list[RunRecord]:
    """Read several run folders; a folder given twice counts once, or it would look like a second seed.

    Raises:
        DataError: with one line for each folder that cannot be read, or where none is given.
    """
    unique = {Path(path).resolve(): Path(path) for path in paths}
    records, problems = [], []
    for path in counted([*unique.values()], progress, "run"):
        try:
            records.append(load_run(path))
        except DataError as error:
            problems.append(str(error))
    if not unique:
        problems.append("no run folder given")
    if problems:
        raise DataError("\n".join(problems))
    return records


def _whole_card(path: Path) -> dict[str, dict[str, Any]]:
    """Return the report card, and in it what the student, and random weights in its place, were worth elsewhere."""
    none: dict[str, dict[str, Any]] = {}
    card = dict(read(path / CARD, _card, otherwise=none))
    for name in DOWNSTREAM:
        found = read(path / name, _card, otherwise=none)
        for role in (STUDENT, FRESH):
            if added := found.get(role):
                card.setdefault(role, {}).update(added)
    return card


def _card(text: str) -> dict[str, dict[str, Any]]:
    return {role: mapping(values) for role, values in json_object(text).items()}


def _map(text: str) -> pd.DataFrame:
    frame = pd.read_csv(io.StringIO(text)).astype(float)
    if len(frame) != len(frame.columns):
        raise ValueError(f"as many rows as columns were expected, not {len(frame)} and {len(frame.columns)}")
    return frame


def _number(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else None  # type: ignore[arg-type]
