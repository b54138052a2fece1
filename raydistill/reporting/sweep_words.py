"""What a sweep says, in sentences that claim no more than its runs allow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from raydistill.reporting.durations import short_duration
from raydistill.reporting.sweeps import Sweep
from raydistill.reporting.swept import short_number

STATUSES = {"completed": "completed", "stopped": "stopped early", "failed": "failed", "running": "unfinished"}

_Row = Mapping[str, Any]


def sweep_sentences(sweep: Sweep) -> list[str]:
    """Return how many trials there were, what they cost, and what the best one is worth."""
    said = [f"{counts(sweep)}.", _budget(sweep)]
    best = sweep.best
    if best is None:
        return [*said, "No trial ended well."]
    return [*said, _best(sweep, best), *_finalists(sweep, best), *_on_test_images(sweep)]


def counts(sweep: Sweep) -> str:
    """Return the number of trials, and how many of them came to which end."""
    total = len(sweep.trials)
    found = sweep.trials["status"].fillna("unfinished").value_counts()
    ends = ", ".join(f"{found[status]} {words}" for status, words in _named(found.index) if found[status])
    return f"{total} trial{'s' if total != 1 else ''}: {ends}"


def values_text(sweep: Sweep, row: _Row) -> str:
    """Return the swept values of a trial, without those that were not set."""
    given = [f"{key} = {value_text(row[key])}" for key in sweep.keys if value_text(row[key])]
    return ", ".join(given) or "the experiment as it stands"


def value_text(value: Any) -> str:
    """Return how a swept value reads; empty where it was not set."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return short_number(value)
    text = " ".join(str(value).split())
    return text.lower() if text in ("True", "False") else text


def finalist_table(sweep: Sweep) -> pd.DataFrame:
    """Return a row for each re-trained trial, best mean first: trial, n, mean, std (ddof 1), values over seeds."""
    finalists = sweep.finalists
    if finalists is None:
        return pd.DataFrame(columns=["trial", "n", "mean", "std", "values"])
    known = finalists[finalists[sweep.metric].notna()].groupby("trial")[sweep.metric]
    table = known.agg(n="count", mean="mean", std="std").reset_index()
    table["values"] = [", ".join(f"{value:.2f}" for value in known.get_group(trial)) for trial in table["trial"]]
    return table.sort_values("mean", ascending=sweep.mode == "min", kind="stable")


def _named(statuses: Iterable[Any]) -> list[tuple[str, str]]:
    """Return statuses in the order of the page; ones that are unknown here come last under their own names."""
    found = [str(status) for status in statuses]
    return [(status, STATUSES.get(status, status)) for status in sorted(found, key=_rank)]


def _rank(status: str) -> int:
    return list(STATUSES).index(status) if status in STATUSES else len(STATUSES)


def _budget(sweep: Sweep) -> str:
    spent, whole = int(sweep.trials["epochs"].sum()), sweep.epochs * len(sweep.trials)
    seconds = sweep.trials["seconds"].sum()
    took = f", in {short_duration(seconds)} of all trials together" if seconds > 0 else ""
    if not whole:
        return f"They trained for {spent:,} epochs{took}."
    retrained = "" if sweep.finalists is None else " The re-trainings of the finalists come on top."
    return (
        f"They trained for {spent:,} of the {whole:,} epochs that all of them would have taken to the end "
        f"({100 * spent / whole:.0f}\N{NO-BREAK SPACE}%){took}.{retrained}"
    )


def _best(sweep: Sweep, best: _Row) -> str:
    said = f"Best: trial {best['trial']}, {sweep.metric} {_score(sweep, best)}, with {values_text(sweep, best)}."
    baseline = sweep.baseline
    if baseline is None:
        return said
    if baseline["trial"] == best["trial"]:
        return f"{said} It is the baseline: no other trial was chosen above it."
    gain = best[sweep.metric] - baseline[sweep.metric]
    direction = "above" if gain >= 0 else "below"
    said += f" That is {abs(gain):.2f} {direction} the baseline's {_score(sweep, baseline)}"
    # One run each says nothing about the spread over seeds; the finalists do.
    return f"{said}, one run each." if sweep.finalists is None else f"{said}, in the sweep's one run each."


def _score(sweep: Sweep, row: _Row) -> str:
    stopped = f" (stopped after epoch {row['epochs']})" if row["status"] == "stopped" else ""
    return f"{row[sweep.metric]:.2f}{stopped}"


def _finalists(sweep: Sweep, best: _Row) -> list[str]:
    table = finalist_table(sweep)
    if table.empty:
        return ["Without re-training with other seeds (tune.repeats) a difference may be noise."]
    rows = {str(row["trial"]): row for row in table.to_dict("records")}
    said = f"Of {len(rows)} trials that were trained again"
    row = rows.get(str(best["trial"]))
    if row is None:
        return [f"{said}, the best one is not among those that ended."]
    spread = "" if math.isnan(row["std"]) else f" ± {row['std']:.2f}"
    said += f", {best['trial']} has {row['mean']:.2f}{spread} (mean of {row['n']} seed{'s' if row['n'] != 1 else ''})"
    if not sweep.result.get("tie"):
        return [f"{said}."]
    others = sweep.result.get("tie_with")
    rivals = ", ".join(map(str, others)) if isinstance(others, list) and others else "another finalist"
    return [f"{said}. The lead is within the noise: it is a tie with {rivals}."]


def _on_test_images(sweep: Sweep) -> list[str]:
    top1 = sweep.result.get("top1")
    if isinstance(top1, int | float) and math.isfinite(top1):
        return [
            f"On the test images, on which the best one alone was measured, it reaches {top1:.2f}\N{NO-BREAK SPACE}%."
        ]
    return []
