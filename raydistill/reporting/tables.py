"""Comparison of runs: means and spreads over seeds, and what may be concluded from them."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from raydistill.config import flatten
from raydistill.reporting.predictions import gained, interval, mean_rightness
from raydistill.reporting.runs import RunRecord, load_run, load_runs

__all__ = [
    "STUDENT_ALONE",
    "RunRecord",
    "cell",
    "comparison",
    "display",
    "flatten",
    "group_label",
    "load_run",
    "load_runs",
    "to_markdown",
]

STUDENT_ALONE = ("ce",)
"""Labels of the methods of a student that is trained without a teacher."""

BETTER, WORSE, UNCLEAR = "better", "worse", "no difference shown"

DASH = "\N{EN DASH}"

COLUMNS = {
    "role": "Role",
    "label": "Network",
    "n": "Seeds",
    "mean": "Top-1 (%)",
    "std": "Std",
    "difference": "Difference",
    "interval": "95 % interval",
    "difference_std": "Std of difference",
    "verdict": "Verdict",
}
"""Columns that are shown, with their headings."""


@dataclass(frozen=True)
class _Group:
    """Runs that differ in the seed alone."""

    label: str
    student: str
    methods: tuple[str, ...]
    conditions: tuple[str, int]
    values: tuple[float, ...]
    records: tuple[RunRecord, ...] = ()

    @cached_property
    def rightness(self) -> pd.Series | None:
        """Share of the runs that classify each test image rightly, where all have said so of the same images."""
        return mean_rightness([record.rightness for record in self.records])

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def std(self) -> float:
        if len(self.values) < 2:
            return math.nan
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.values) / (len(self.values) - 1))


def comparison(records: Iterable[RunRecord], baseline: Sequence[str] = STUDENT_ALONE) -> pd.DataFrame:
    """Compare students over seeds with the student alone.

    Runs of kind ``train`` with a test accuracy are grouped by student and method labels; where runs of such a
    group differ in more than the seed, they become different groups, told apart by their folders. Several
    runs of one seed count as one, by their mean. A difference is taken against the student alone on the same
    data for the same number of epochs. It is called better or worse where it exceeds its standard deviation
    sqrt(std^2 + std_alone^2), that of the difference between one run of each, which takes two seeds each, and where,
    if ``raydistill eval`` has left what all of them say of the test images, the 95 % interval of a paired bootstrap
    over these leaves 0 out.

    Args:
        records: runs of any kind; sweeps do not take part, for their metric is not a test accuracy.
        baseline: labels of the methods of the student alone.

    Returns:
        One row for each teacher, each student alone and each distilled student, best first. Columns: role,
        label, student, methods, n, mean, std (ddof 1), difference, interval (low, high), difference_std, verdict,
        values.
    """
    records = list(records)
    alone, distilled = _students(records, tuple(baseline))
    rows = [_row("teacher", teacher, None) for teacher in _teachers(records)]
    rows += [_row("student alone", group, None) for group in alone]
    rows += [
        _row("distilled", group, _counterpart(group, alone))
        for group in sorted(distilled, key=lambda group: -group.mean)
    ]
    return pd.DataFrame(rows, columns=["role", "label", "student", "methods", *list(COLUMNS)[2:], "values"])


@dataclass(frozen=True)
class Change:
    """What a distilled student gains and loses against the student alone, image by image.

    ``gain`` is id -> share of seeds that are right with the teacher less the share that are so without, -1 to 1.
    """

    label: str
    against: str
    record: RunRecord
    gain: pd.Series


def changes(records: Iterable[RunRecord], baseline: Sequence[str] = STUDENT_ALONE) -> list[Change]:
    """Return the gain of each distilled student whose predictions, and those of the student alone, are known."""
    alone, distilled = _students(records, tuple(baseline))
    found = []
    for group in distilled:
        against = _counterpart(group, alone)
        gain = gained(group.rightness, against.rightness) if against is not None else None
        if against is not None and gain is not None:
            found.append(Change(group.label, against.label, group.records[0], gain))
    return found


def group_label(record: RunRecord) -> str:
    """Return the name that runs of one student and one set of methods share."""
    return record.student if record.kind == "teacher" else f"{record.student}: {' + '.join(record.methods)}"


def _students(records: Iterable[RunRecord], baseline: tuple[str, ...]) -> tuple[list[_Group], list[_Group]]:
    """Return the measured students that learnt alone, and the others."""
    measured = [record for record in records if record.kind == "train" and record.top1 is not None]
    groups = _groups(measured, baseline)
    alone = [group for group in groups if group.methods == baseline]
    return alone, [group for group in groups if group.methods != baseline]


def _groups(records: Sequence[RunRecord], baseline: tuple[str, ...]) -> list[_Group]:
    settings: defaultdict[str, defaultdict[str, list[RunRecord]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        settings[group_label(record)][setting(record, baseline)].append(record)
    return [
        _group(members, f"{label} ({members[0].path.name})" if len(variants) > 1 else label)
        for label, variants in settings.items()
        for members in variants.values()
    ]


def _group(members: Sequence[RunRecord], label: str) -> _Group:
    first = members[0]
    by_seed: defaultdict[object, list[float]] = defaultdict(list)
    for record in members:
        assert record.top1 is not None
        by_seed[str(record.path) if record.seed is None else record.seed].append(record.top1)
    return _Group(
        label=label,
        student=first.student,
        methods=first.methods,
        conditions=conditions(first),
        values=tuple(sum(values) / len(values) for values in by_seed.values()),
        records=tuple(members),
    )


def setting(record: RunRecord, baseline: tuple[str, ...] = STUDENT_ALONE) -> str:
    """Return everything that decides a result apart from the seed, as text to compare."""
    config = record.config
    teacher = config.get("teacher") or {}
    return _canonical(
        {
            "data": data_of(record),
            "teacher": teacher.get("model") if record.methods != baseline else None,
            "epochs": record.epochs,
            **{name: config.get(name) for name in ("student", "methods", "train")},
        }
    )


def conditions(record: RunRecord) -> tuple[str, int]:
    """Return what two runs must have in common to be compared: the data, as text, and the number of epochs."""
    return _canonical(data_of(record)), record.epochs


def data_of(record: RunRecord) -> dict[str, Any]:
    """Return the section ``data`` of a run, but for the place where the images lie."""
    data = record.config.get("data")
    # The same images may lie elsewhere on another machine.
    return {key: value for key, value in data.items() if key != "root"} if isinstance(data, dict) else {}


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _counterpart(group: _Group, alone: Iterable[_Group]) -> _Group | None:
    fair = [other for other in alone if (other.student, other.conditions) == (group.student, group.conditions)]
    # Of several settings of the student alone the best one is the honest opponent.
    return max(fair, key=lambda other: other.mean, default=None)


def _teachers(records: Sequence[RunRecord]) -> list[_Group]:
    trained = [record for record in records if record.kind == "teacher" and record.top1 is not None]
    groups = _groups(trained, STUDENT_ALONE)
    known = {group.student for group in groups}
    on_cards: dict[str, dict[str, float]] = defaultdict(dict)
    for record in records:
        teacher = record.config.get("teacher") or {}
        top1 = record.card.get("teacher", {}).get("top1")
        if top1 is not None and teacher.get("model") not in known:
            on_cards[str(teacher.get("model"))][str(teacher.get("weights"))] = float(top1)
    measured = [
        _Group(label=model, student=model, methods=(), conditions=("", 0), values=tuple(values.values()))
        for model, values in on_cards.items()
    ]
    return [*groups, *measured]


def _row(role: str, group: _Group, against: _Group | None) -> dict[str, Any]:
    difference = group.mean - against.mean if against else math.nan
    spread = math.hypot(group.std, against.std) if against else math.nan
    ends = interval(gained(group.rightness, against.rightness)) if against else None
    return {
        "role": role,
        "label": group.label,
        "student": group.student,
        "methods": group.methods if role != "teacher" else (),
        "n": len(group.values),
        "mean": group.mean,
        "std": group.std,
        "difference": difference,
        "interval": ends,
        "difference_std": spread,
        "verdict": verdict(difference, spread, ends) if against else "",
        "values": group.values,
    }


def verdict(difference: float, spread: float, ends: tuple[float, float] | None = None) -> str:
    """Return what may be concluded from a difference of standard deviation ``spread``, and of an interval if known."""
    low, high = ends or (difference, difference)
    # Comparisons with an unknown spread (one seed) are false, as they should be.
    if difference > spread and low > 0:
        return BETTER
    return WORSE if -difference > spread and high < 0 else UNCLEAR


def display(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a comparison that people read, under their headings."""
    shown = [name for name in COLUMNS if name != "interval" or frame["interval"].notna().any()]
    return frame[shown].rename(columns=COLUMNS)


def to_markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown: two decimals, and a dash where there is no value."""
    rows = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    rows += [[cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    escaped = [[text.replace("|", "\\|") for text in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in escaped)


def cell(value: object) -> str:
    """Return how a value reads in a table."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, tuple):
        return " to ".join(f"{end:+.2f}" for end in value)
    return " ".join(str(value).split())
