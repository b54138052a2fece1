"""One self-contained HTML page about several runs: what came out, what it cost and how it was made."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, StrictUndefined

from raydistill.errors import DataError
from raydistill.files import make_folders, write_atomically
from raydistill.measures import measure_behind
from raydistill.methods.describe import describe
from raydistill.methods.registry import METHODS
from raydistill.progress import Progress, counted, part, unwatched
from raydistill.reporting.image_section import changed_images, neighbours_and_clusters
from raydistill.reporting.pictures import Albums
from raydistill.reporting.reading import section
from raydistill.reporting.runs import RunRecord, load_runs
from raydistill.reporting.summary import sentences
from raydistill.reporting.sweep_section import sweep_section
from raydistill.reporting.sweeps import Sweep
from raydistill.reporting.tables import cell, changes, comparison, display, flatten, group_label

CARD_COLUMNS = {
    "top1": "Top-1 (%)",
    "top5": "Top-5 (%)",
    "nn1": "1-NN (%)",
    "knn": "k-NN (%)",
    "parameters": "Parameters",
    "mult_adds": "Mult-adds",
    "latency_p50_ms": "Latency p50 (ms)",
    "latency_p95_ms": "p95 (ms)",
}
"""Values of ``card.json`` in the order of the page."""

ENERGY_COLUMN = "Energy (J)"


def write_report(run_paths: Iterable[str | Path], output: str | Path, *, progress: Progress = unwatched) -> Path:
    """Write a page about finished runs of any kind; the file appears whole or not at all.

    Args:
        run_paths: run folders: teachers, students and sweeps.
        output: the HTML file; its folder is made.
        progress: is told of each run that is read, and of each sweep and run that is drawn.

    Returns:
        The path of the page.

    Raises:
        DataError: with one line for each folder that cannot be read; nothing is written.
        RunError: where the file cannot be written.
    """
    output = Path(output)
    records = load_runs(run_paths, progress=part(progress, 0.0, 0.2))
    if output.is_dir():
        raise DataError(f"{output}: is a folder; name the HTML file to write")
    page = render(records, progress=part(progress, 0.2, 1.0))
    make_folders(output.parent)
    write_atomically(output, page)
    return output


def render(records: Sequence[RunRecord], *, progress: Progress = unwatched) -> str:
    """Return the page about loaded runs."""
    template = resources.files("raydistill.reporting").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    return environment.from_string(template).render(_content(records, progress)).lstrip()


def _content(records: Sequence[RunRecord], progress: Progress) -> dict[str, Any]:
    # matplotlib takes most of a second to import; errors in the runs are found before that.
    from raydistill.reporting import plots

    progress(0.0, "the comparison")
    frame, albums = comparison(records), Albums()
    names = _unique_names(records)
    named = list(zip(names, records, strict=True))
    cost = _cost(named)
    swept = [(name, run.sweep) for name, run in named if run.sweep]
    losing = _grouped(records, "train/loss")
    return {
        "title": ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more runs",
        "summary": sentences(records, frame),
        "has_runs": any(record.kind != "tune" for record in records),
        "comparison": _table(display(frame)),
        "comparison_plot": plots.comparison_plot(frame) if len(frame) else "",
        "validations": [plots.validation_curves(_grouped(records, name), name) for name in _validated(records)],
        "losses": [(label, plots.loss_curves(label, runs)) for label, runs in losing.items()],
        "sweeps": [_sweep_section(*one) for one in counted(swept, part(progress, 0.3, 0.7), "sweep")],
        "correlations": [
            plots.correlation_map(name, record.correlation) for name, record in named if len(record.correlation)
        ],
        "changed": [changed_images(change, albums) for change in changes(records)],
        "seen": [
            neighbours_and_clusters(name, record, albums)
            for name, record in counted(named, part(progress, 0.7, 1.0), "images of run")
            if record.panels.neighbours or record.panels.clusters
        ],
        "methods": [describe(name) for name in _methods(records)],
        "cost": _table(cost),
        "knows_energy": ENERGY_COLUMN in cost,
        "cards": _table(_cards(named)),
        "runs": [_run_section(name, run) for name, run in named],
        "environment": _environment(records),
    }


def _unique_names(records: Sequence[RunRecord]) -> list[str]:
    """Return the runs' names; where two are equal, with their folders."""
    names = [record.name for record in records]
    return [
        name if names.count(name) == 1 else f"{name} ({record.path})"
        for name, record in zip(names, records, strict=True)
    ]


def _methods(records: Sequence[RunRecord]) -> list[str]:
    """Return the names of all methods that the runs were trained with, once each."""
    sections = (section(record.config, "methods") for record in records if record.kind == "train")
    named = (str(section(methods, label).get("name", label)) for methods in sections for label in methods)
    return [name for name in dict.fromkeys(named) if name in METHODS]


def _validated(records: Sequence[RunRecord]) -> list[str]:
    """Return the metrics by which epochs were judged: accuracy, and how alike student and teacher see the images."""
    known = {name for record in records for epoch in record.metrics for name in epoch}
    return [name for name in sorted(known) if name == "val/top1" or measure_behind(name) is not None]


def _grouped(records: Sequence[RunRecord], metric: str) -> dict[str, list[RunRecord]]:
    """Return the runs whose epochs have the metric, by the label that they share."""
    groups: dict[str, list[RunRecord]] = {}
    for record in records:
        if any(metric in epoch for epoch in record.metrics):
            label = f"teacher {group_label(record)}" if record.kind == "teacher" else group_label(record)
            groups.setdefault(label, []).append(record)
    return groups


def _sweep_section(name: str, sweep: Sweep) -> dict[str, Any]:
    content = sweep_section(name, sweep)
    return {key: _table(part) if isinstance(part, pd.DataFrame) else part for key, part in content.items()}


def _cost(named: Iterable[tuple[str, RunRecord]]) -> pd.DataFrame:
    frame = pd.DataFrame([_cost_row(name, record) for name, record in named])
    return frame if frame[ENERGY_COLUMN].notna().any() else frame.drop(columns=ENERGY_COLUMN)


def _cost_row(name: str, record: RunRecord) -> dict[str, Any]:
    epochs, seconds = record.epochs, record.result.get("seconds")
    if record.sweep is not None:
        epochs = int(record.sweep.trials["epochs"].sum())
        if seconds is None and record.sweep.trials["seconds"].notna().any():
            seconds = record.sweep.trials["seconds"].sum()
    speeds = [epoch["images_per_s"] for epoch in record.metrics if epoch.get("images_per_s")]
    return {
        "Run": name,
        "Kind": record.kind,
        "Epochs": epochs,
        "Seconds": None if seconds is None else f"{seconds:,.1f}",
        ENERGY_COLUMN: None if (joules := record.result.get("energy_j")) is None else f"{joules:,.0f}",
        "Images/s (median)": f"{statistics.median(speeds):,.0f}" if speeds else None,
        "Teacher forwards": _whole(record.result.get("teacher_forwards")),
        "Saved by the cache": _whole(record.result.get("teacher_forwards_saved")),
    }


def _cards(named: Iterable[tuple[str, RunRecord]]) -> pd.DataFrame:
    rows = [
        {
            "Run": name,
            "Network": role,
            **{title: _whole(values.get(key)) for key, title in CARD_COLUMNS.items()},
        }
        for name, record in named
        for role, values in record.card.items()
        if not CARD_COLUMNS.keys().isdisjoint(values)
    ]
    frame = pd.DataFrame(rows, dtype=object)
    return frame.dropna(axis="columns", how="all")


def _whole(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def _run_section(name: str, record: RunRecord) -> dict[str, Any]:
    config = yaml.safe_dump(dict(record.config), sort_keys=False, allow_unicode=True, width=100)
    return {"name": name, "kind": record.kind, "path": str(record.path), "config": config}


def _environment(records: Sequence[RunRecord]) -> list[tuple[str, list[str]]]:
    """Return what the runs were made with: each key with its different values."""
    values: dict[str, dict[str, None]] = {}
    for record in records:
        for key, value in flatten(record.environment).items():
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            values.setdefault(key, {})[text] = None
    return [(key, list(texts)) for key, texts in values.items()]


def _table(frame: pd.DataFrame) -> dict[str, Any]:
    """Return headings and rows; a cell is its text and whether it is a number."""
    rows = [[(cell(value), _is_number(value)) for value in row] for row in frame.itertuples(index=False, name=None)]
    numeric = [any(row[column][1] for row in rows) for column in range(len(frame.columns))]
    return {"columns": list(zip(map(str, frame.columns), numeric, strict=True)), "rows": rows}


def _is_number(value: Any) -> bool:
    # The number of a trial, such as 0003, is a name.
    return re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?(e[+-]\d+)?", cell(value).replace(",", "")) is not None
