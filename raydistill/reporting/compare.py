"""Runs in the shape of a paper's table: methods down, pairs of networks across, the published value beside ours."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import pandas as pd

from raydistill.evaluation.downstream import FRESH
from raydistill.reporting.layouts import Column, Layout, Measure, Row
from raydistill.reporting.placing import TableRun, in_column, in_row, section_of, unplaced
from raydistill.reporting.runs import RunRecord
from raydistill.reporting.tables import BETTER, WORSE, conditions, data_of, setting, verdict

UP, DOWN = "\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"

_ARROWS = {BETTER: UP, WORSE: DOWN}

PLACED = ""
"""What is told of a run that is in the table."""

SPENT = ("seconds", "energy_j")
"""What layouts can show of a run's result beside its accuracy."""

PEER = "peer1"
CELL_COLUMNS = ["row", "column", "mean", "std", "n", "published", "published_std", "arrow"]


@dataclass(frozen=True)
class Table:
    """A layout that was filled with runs.

    Attributes:
        layout: what it was made for.
        columns: those of the layout, and behind them those of pairs that the paper does not have.
        cells: one row for each cell that holds something, in the layout's order, with the columns ``CELL_COLUMNS``:
            ``mean``, ``std`` (ddof 1) and number of our values, one for each seed, and the paper's value; ``arrow`` is
            empty where no difference from the baseline is shown, or where there is nothing to compare with.
        notes: what must be known to read the table, and the runs that are not in it.
    """

    layout: Layout
    columns: tuple[Column, ...]
    cells: pd.DataFrame
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Ours:
    """The values of a cell, one for each seed."""

    values: tuple[float, ...]
    conditions: tuple[str, int] | None

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def std(self) -> float:
        return stdev(self.values) if len(self.values) > 1 else math.nan


def pivot(records: Iterable[RunRecord], layout: Layout) -> Table:
    """Fill a layout with runs.

    A run belongs to the row that has its methods and settings, and to the columns of its teacher and student; a student
    alone belongs to every column of its network. Pairs that the paper does not have get columns of their own. Several
    runs of one seed count as one, by their mean. Where the runs of a cell differ in more than the seed, the cell takes
    those that are most, or came first, and a note tells of the others. A cell is compared with the baseline of its
    column, on the same data for the same number of epochs, as ``comparison`` does: a difference counts where it exceeds
    its standard deviation, which takes two seeds each.

    Args:
        records: runs of any kind.
        layout: the table's shape.
    """
    runs = [TableRun(record) for record in records]
    columns = (*layout.columns, *_further_columns(runs, layout))
    used: dict[int, str] = {}
    ours: dict[tuple[str, str], _Ours] = {}
    for row in layout.rows:
        for column in columns:
            if found := _ours(runs, row, column, layout, used):
                ours[row.label, column.label] = found
    filled = {label for _, label in ours}
    columns = tuple(column for column in columns if column in layout.columns or column.label in filled)
    cells = [
        _cell(row, column, layout, ours, index if index < len(layout.columns) else None)
        for row in layout.rows
        for index, column in enumerate(columns)
    ]
    held = [cell for cell in cells if cell["n"] or cell["published"] is not None]
    notes = (*_notes(runs, layout, used), *layout.remarks)
    return Table(layout, columns, pd.DataFrame(held, columns=CELL_COLUMNS), notes)


def _further_columns(runs: Sequence[TableRun], layout: Layout) -> list[Column]:
    """Columns of the pairs of networks that have a row in the layout, but no column."""
    further: dict[str, Column] = {}
    labels = {column.label for column in layout.columns}
    measures = dict.fromkeys(_own_measure(column) for column in layout.columns)
    of_pairs = any(column.teacher for column in layout.columns)
    for run in runs:
        in_a_row = any(row.role not in ("teacher", "student") and in_row(run, row, layout) for row in layout.rows)
        is_pair = run.teacher is not None
        if not in_a_row or (of_pairs and not is_pair) or any(in_column(run, column) for column in layout.columns):
            continue
        for measure in measures:
            pair = f"{run.teacher} \N{RIGHTWARDS ARROW} {run.record.student}" if is_pair else run.record.student
            label = pair if measure.metric is None else f"{pair}, {'error of ' * measure.error}{measure.metric}"
            label = f"{label} (ours)" if label in labels else label
            shown = measure.model_dump()
            further[label] = Column(label=label, teacher=run.teacher, student=run.record.student, **shown)
    return list(further.values())


def _own_measure(column: Column) -> Measure:
    return Measure(**{name: getattr(column, name) for name in Measure.model_fields})


def _ours(runs: Sequence[TableRun], row: Row, column: Column, layout: Layout, used: dict[int, str]) -> _Ours | None:
    """Return the values of a cell; what becomes of its runs is noted in ``used`` by their position."""
    measure = layout.measure(row, column)
    if row.role == "teacher":
        return _teacher(runs, column, measure, layout, used)
    if row.role == FRESH:
        return _fresh(runs, column, measure)
    values = {}
    for position, run in enumerate(runs):
        if in_row(run, row, layout) and in_column(run, column, any_teacher=row.role == "student"):
            value = _value(run.record, PEER if row.role == "peer" else "student", measure)
            if value is None:
                used.setdefault(position, _unmeasured(measure))
            else:
                values[position] = value
    if not values:
        return None
    if row.role != "any":
        values = _of_one_setting(runs, values, layout, f"{row.label}, {column.label}", used)
    used.update(dict.fromkeys(values, PLACED))
    return _Ours(tuple(_by_seed(runs, values).values()), conditions(runs[next(iter(values))].record))


def _of_one_setting(
    runs: Sequence[TableRun], values: Mapping[int, float], layout: Layout, cell: str, used: dict[int, str]
) -> dict[int, float]:
    """Return the values of the setting that has most seeds, or came first."""
    variants: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for position, value in values.items():
        variants[setting(runs[position].record, layout.implied)][position] = value
    chosen = max(variants.values(), key=lambda variant: len(_by_seed(runs, variant)))
    for position in values.keys() - chosen.keys():
        used.setdefault(position, f"another setting than that of the cell {cell}")
    return chosen


def _teacher(
    runs: Sequence[TableRun], column: Column, measure: Measure, layout: Layout, used: dict[int, str]
) -> _Ours | None:
    """Return a teacher's values: those of its own runs, or those on the cards of its students."""
    own = {
        position: value
        for position, run in enumerate(runs)
        if run.record.kind == "teacher" and run.record.student == column.teacher
        if (value := _value(run.record, "student", measure)) is not None
    }
    if own:
        own = _of_one_setting(runs, own, layout, f"teacher of {column.label}", used)
        used.update(dict.fromkeys(own, PLACED))
        return _Ours(tuple(_by_seed(runs, own).values()), None)
    on_cards = {
        str(section_of(run.record.config, "teacher").get("weights")): value
        for run in runs
        if run.record.kind == "train" and run.teacher is not None and in_column(run, column)
        if (value := _value(run.record, "teacher", measure)) is not None
    }
    return _Ours(tuple(on_cards.values()), None) if on_cards else None


def _fresh(runs: Sequence[TableRun], column: Column, measure: Measure) -> _Ours | None:
    """Return what a column's student was worth for another task with random weights; whose run noted it is all one."""
    values = {
        position: value
        for position, run in enumerate(runs)
        if run.record.kind == "train" and in_column(run, column, any_teacher=True)
        if (value := _value(run.record, FRESH, measure)) is not None
    }
    return _Ours(tuple(_by_seed(runs, values).values()), None) if values else None


def _by_seed(runs: Sequence[TableRun], values: Mapping[int, float]) -> dict[object, float]:
    by_seed: defaultdict[object, list[float]] = defaultdict(list)
    for position, value in values.items():
        record = runs[position].record
        by_seed[str(record.path) if record.seed is None else record.seed].append(value)
    return {seed: mean(several) for seed, several in by_seed.items()}


def _value(record: RunRecord, role: str, measure: Measure) -> float | None:
    """Return what a run has of a measure, in the table's unit; what it spent stands in its result."""
    if measure.metric is None:
        return None
    spent = record.result.get(measure.metric) if role == "student" and measure.metric in SPENT else None
    found = record.card.get(role, {}).get(measure.metric, spent)
    in_result = {"student": record.top1, PEER: record.result.get(f"{PEER}_top1")}
    if measure.metric == "top1" and in_result.get(role) is not None:
        found = in_result[role]
    return None if found is None else measure.shown(float(found))


def _cell(
    row: Row, column: Column, layout: Layout, ours: Mapping[tuple[str, str], _Ours], published: int | None
) -> dict[str, Any]:
    own = ours.get((row.label, column.label))
    return {
        "row": row.label,
        "column": column.label,
        "mean": own.mean if own else math.nan,
        "std": own.std if own else math.nan,
        "n": len(own.values) if own else 0,
        "published": None if published is None else row.values[published],
        "published_std": row.std[published] if row.std and published is not None else None,
        "arrow": _arrow(row, column, layout, ours),
    }


def _arrow(row: Row, column: Column, layout: Layout, ours: Mapping[tuple[str, str], _Ours]) -> str:
    own, baseline = ours.get((row.label, column.label)), ours.get((str(layout.baseline), column.label))
    if own is None or baseline is None or own is baseline or own.conditions != baseline.conditions:
        return ""
    sign = -1 if layout.measure(row, column).lower_is_better else 1
    return _ARROWS.get(verdict(sign * (own.mean - baseline.mean), math.hypot(own.std, baseline.std)), "")


def _notes(runs: Sequence[TableRun], layout: Layout, used: Mapping[int, str]) -> Iterator[str]:
    where = " ".join(filter(None, [layout.source.where, layout.source.url and f"({layout.source.url})"]))
    yield f"In brackets: published, {layout.reference} of {where}; {layout.setting}."
    placed = [run.record for position, run in enumerate(runs) if used.get(position) == PLACED]
    if placed:
        yield f"Ours: {'; '.join(dict.fromkeys(_words(record) for record in placed))}."
        yield "Mean and standard deviation over seeds, whose number is in round brackets."
    if placed and layout.baseline is not None:
        yield (
            f"{UP} better and {DOWN} worse than {layout.baseline} in the same column, by more than the standard "
            "deviation of the difference; nothing where no difference is shown."
        )
    for position, run in enumerate(runs):
        if reason := used.get(position, unplaced(run, layout)):
            yield f"Not in the table: {run.record.path}: {reason}."


def _words(record: RunRecord) -> str:
    data = data_of(record)
    count = data.get("subset")
    images = f", {count} training images" if count is not None else ""
    which = " (teacher)" if record.kind == "teacher" else ""
    return f"{data.get('name')}{images}, {record.epochs} epochs{which}"


def _unmeasured(measure: Measure) -> str:
    if measure.metric is None:
        return "nothing here measures what its cells show"
    return f"its card has no {measure.metric}; run `raydistill eval` on it with that protocol"
