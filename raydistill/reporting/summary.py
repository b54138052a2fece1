"""What a comparison of runs says, in sentences that claim no more than the seeds allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from raydistill.reporting.runs import RunRecord
from raydistill.reporting.sweep_words import counts, values_text
from raydistill.reporting.tables import BETTER, WORSE, cell

_Row = Mapping[str, Any]


def sentences(records: Sequence[RunRecord], frame: pd.DataFrame) -> list[str]:
    """Return the summary of a comparison: teachers, each student alone, its best distilled self, sweeps."""
    rows: list[_Row] = [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
    teachers = [row for row in rows if row["role"] == "teacher"]
    said = [f"The teacher {row['label']} reaches {_accuracy(row)}." for row in teachers]
    for student in dict.fromkeys(row["student"] for row in rows if row["role"] != "teacher"):
        own = [row for row in rows if row["student"] == student]
        alone = [row for row in own if row["role"] == "student alone"]
        distilled = [row for row in own if row["role"] == "distilled"]
        said += [f"The student {_name(row, alone)}, trained alone, reaches {_accuracy(row)}." for row in alone]
        if distilled:
            said.append(_best(distilled[0], len(distilled)))
            said += _judgement(distilled[0], teachers)
    said += [_sweep(record) for record in records if record.sweep]
    unmeasured = [record.name for record in records if record.kind != "tune" and record.top1 is None]
    if unmeasured:
        said.append(f"Without a test accuracy, and so not compared: {', '.join(unmeasured)}.")
    return said or ["No run here has a test accuracy."]


def _name(row: _Row, rivals: Sequence[_Row]) -> str:
    return str(row["label"] if len(rivals) > 1 else row["student"])


def _accuracy(row: _Row) -> str:
    if row["n"] == 1:
        return f"{row['mean']:.2f} % top-1 on the test images (one seed)"
    return f"{row['mean']:.2f} ± {row['std']:.2f} % top-1 on the test images ({row['n']} seeds)"


def _best(row: _Row, tried: int) -> str:
    which = "The distilled student" if tried == 1 else f"The best of {tried} distilled students,"
    comma = "" if tried == 1 else ","
    return f"{which} {row['label']}{comma} reaches {_accuracy(row)}."


def _judgement(row: _Row, teachers: Sequence[_Row]) -> list[str]:
    difference, spread = row["difference"], row["difference_std"]
    if math.isnan(difference):
        return ["There is no student alone on the same data for as many epochs to compare it with."]
    direction = "above" if difference >= 0 else "below"
    distance = f"That is {abs(difference):.2f} points {direction} the student alone"
    if row["interval"]:
        distance += f" (95 % interval over test images {cell(row['interval'])})"
    if math.isnan(spread):
        reason = "a spread takes at least two seeds on both sides, so no difference is shown"
        return [f"{distance}; {reason}."]
    if row["verdict"] not in (BETTER, WORSE) and abs(difference) > spread:
        reason = f"more than the standard deviation of {spread:.2f}, but the interval holds 0"
        return [f"{distance}, {reason}: no difference is shown."]
    if row["verdict"] not in (BETTER, WORSE):
        return [f"{distance}, within the standard deviation of {spread:.2f}: no difference is shown."]
    said = [f"{distance}, more than the standard deviation of {spread:.2f}: it is {row['verdict']}."]
    gap = teachers[0]["mean"] - (row["mean"] - difference) if len(teachers) == 1 else 0.0
    if row["verdict"] == BETTER and gap > 0:
        said.append(f"It closes {100 * difference / gap:.0f} % of the student's distance to the teacher.")
    return said


def _sweep(record: RunRecord) -> str:
    sweep = record.sweep
    assert sweep is not None
    tried = f"Sweep {record.name}: {counts(sweep)}"
    best = sweep.best
    if best is None:
        return f"{tried}; none ended well."
    # Many values are told below; here they would drown the rest.
    how = f"with {values_text(sweep, best)}" if len(sweep.keys) < 5 else f"from trial {best['trial']}"
    return f"{tried}; the best {sweep.metric} of {best[sweep.metric]:.2f} came {how}."
