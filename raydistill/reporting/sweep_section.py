"""What the page shows about one sweep."""

from __future__ import annotations

from typing import Any

import pandas as pd

from raydistill.reporting.importance import honest_words, importances
from raydistill.reporting.pareto import COSTS, fronts
from raydistill.reporting.sweep_words import finalist_table, sweep_sentences, value_text
from raydistill.reporting.sweeps import BASELINE, Sweep


def sweep_section(name: str, sweep: Sweep) -> dict[str, Any]:
    """Return a sweep's sentences, figures (SVG; empty where there is nothing to draw) and tables (may be empty)."""
    # matplotlib takes most of a second to import.
    from raydistill.reporting import parallel, pareto_plots, sweep_plots

    has_several = len(sweep.ended) > 1
    learned = importances(sweep)
    return {
        "name": name,
        "has_baseline": sweep.baseline is not None,
        "has_rungs": bool(sweep.rungs),
        "sentences": sweep_sentences(sweep),
        "legend": sweep_plots.legend(sweep) if has_several else "",
        "value_plots": list(sweep_plots.value_plots(sweep).values()) if has_several else [],
        "importances": sweep_plots.importance_plot(learned) if learned and learned.is_evidence else "",
        "importance_words": honest_words(learned) if learned else "",
        "parallel": parallel.parallel_coordinates(sweep),
        "curves": sweep_plots.trial_curves(sweep) if sweep.histories else "",
        "best_so_far": sweep_plots.best_so_far(sweep) if has_several else "",
        "pareto": pareto_plots.pareto_plots(sweep),
        "front": _front(sweep),
        "finalists": _finalists(sweep),
        "failed": _failed(sweep),
        "trials": _trials(sweep, _best_first(sweep)),
    }


def _best_first(sweep: Sweep) -> pd.DataFrame:
    return sweep.trials.sort_values(sweep.metric, ascending=sweep.mode == "min", na_position="last", kind="stable")


def _trials(sweep: Sweep, rows: pd.DataFrame) -> pd.DataFrame:
    """Return trials with the values that they were run with, as text, and the columns that say anything."""
    table = rows[["trial", "status", "epochs", sweep.metric]].astype(object)
    for key in sweep.keys:
        table[key] = [value_text(value) for value in rows[key]]
    table["trial"] = [f"{trial} (baseline)" if trial == BASELINE else trial for trial in rows["trial"]]
    for cost, title in COSTS.items():
        if rows[cost].notna().any():
            table[title] = [_amount(value) for value in rows[cost]]
    if rows["seconds"].notna().any():
        table["seconds"] = [_amount(round(value, 1)) for value in rows["seconds"]]
    return table


def _front(sweep: Sweep) -> pd.DataFrame:
    front = fronts(sweep)
    return _trials(sweep, front).assign(**{"on the front of": front["fronts"]})


def _finalists(sweep: Sweep) -> pd.DataFrame:
    titles = {"trial": "Trial", "n": "Seeds", "mean": f"Mean {sweep.metric}", "std": "Std", "values": "Each seed"}
    return finalist_table(sweep).rename(columns=titles)


def _failed(sweep: Sweep) -> pd.DataFrame:
    """Return the failed trials, and then the re-trainings that failed, with their causes."""
    failed = sweep.trials[sweep.trials["status"] == "failed"]
    if sweep.finalists is not None:
        again = sweep.finalists[sweep.finalists[sweep.metric].isna()]
        names = [f"{trial} again, seed {seed}" for trial, seed in zip(again["trial"], again["seed"], strict=True)]
        failed = pd.concat([failed, again.assign(trial=names)])
    causes = failed["cause"].fillna("not recorded") if "cause" in failed else "not recorded"
    return pd.DataFrame({"Trial": failed["trial"], "Cause": causes})


def _amount(value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if value < 1000 else f"{value:,.1f}"
