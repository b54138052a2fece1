"""What a sweep found: ``trials.csv``, ``finalists.csv``, ``best.yaml`` and the result."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from raydistill.config import Experiment
from raydistill.errors import DataError, RunError
from raydistill.evaluation.card import evaluate_run
from raydistill.evaluation.cost import latency
from raydistill.files import write_atomically
from raydistill.models.loading import build_described
from raydistill.training.run_folder import RunFolder
from raydistill.tuning.selection import Ending, best_first, standings, tied_with
from raydistill.tuning.space import configured, parse_space, value_at
from raydistill.tuning.trial_folder import TrialFolder, finalists_of, trials_of

COUNTED = {"completed": "completed", "stopped_early": "stopped", "failed": "failed"}
"""Key of the result -> status of the trials that it counts."""

TEACHER_WORK = ("teacher_forwards", "teacher_forwards_saved")
"""What the result adds up over all trials."""

Row = dict[str, Any]


def conclude(
    experiment: Experiment, folder: RunFolder, shape: tuple[int, int, int], num_classes: int
) -> dict[str, Any]:
    """Write the tables and the best experiment; return the result.

    The best configuration is that with the best mean of its finalists, or, without such, the best trial among those
    that came to their end. The winner alone is measured on the test images. ``shape`` is (C, H, W).

    Raises:
        RunError: where no trial has the metric.
    """
    config = experiment.tune
    assert config is not None
    trials = trials_of(folder.path)
    rows = [_row(experiment, trial) for trial in trials]
    if any(entry.key.startswith("student.") for entry in parse_space(experiment)):
        _add_latency(experiment, trials, rows, shape, num_classes)
    write_atomically(folder.path / "trials.csv", pd.DataFrame(rows).to_csv(index=False))
    best = _best(rows, config.metric, config.mode)
    if best is None:
        causes = [row["cause"] for row in rows if row["cause"]]
        reason = causes[0] if causes else "no trial reported the metric"
        raise RunError(f"{folder.path}: all {len(rows)} trials failed or lack {config.metric}: {reason}")
    result: dict[str, Any] = {"best_metric": best[config.metric], "best_trial": best["trial"]}
    winners = [trials[int(best["trial"])]]
    if finalists := _finalists(experiment, folder.path):
        result |= _final_result(finalists, config.mode)
        winners = [trial for trial in finalists_of(folder.path) if trial.record["trial"] == int(result["best_trial"])]
    values = trials[int(result["best_trial"])].record["values"]
    winner = configured(experiment, values).as_trial().override({"name": f"{experiment.name}-best"})
    write_atomically(folder.path / "best.yaml", winner.to_yaml())
    return {
        "kind": "tune",
        "run": str(folder.path),
        "name": experiment.name,
        "seed": experiment.seed,
        "best_config": str(folder.path / "best.yaml"),
        **result,
        "best_values": values,
        **({"schedule": trials[int(result["best_trial"])].changes} if config.scheduler.generation else {}),
        "baseline_metric": rows[0][config.metric],
        "metric": config.metric,
        **_on_test_images(winners),
        "trials": len(rows),
        **{key: sum(row["status"] == status for row in rows) for key, status in COUNTED.items()},
        **{key: sum(_last(trial).get(key, 0) for trial in trials) for key in TEACHER_WORK},
    }


def _row(experiment: Experiment, trial: TrialFolder) -> Row:
    """Return a trial's line of ``trials.csv``."""
    assert experiment.tune is not None
    record, metric = trial.record, experiment.tune.metric
    history = trial.history()
    epochs = record["epochs"] if record["status"] == "stopped" else len(history)
    value = history[epochs - 1].get(metric) if epochs and record["status"] in ("completed", "stopped") else None
    return {
        "trial": trial.path.name,
        "status": record["status"],
        "epochs": epochs,
        metric: value,
        "seconds": sum(epoch["seconds"] for epoch in history[:epochs]),
        "seed": record["seed"],
        "cause": record["cause"],
        "parameters": record.get("parameters"),
        "latency_ms": None,
        **{entry.key: _value(experiment, record, entry.key) for entry in parse_space(experiment)},
    }


def _value(experiment: Experiment, record: Mapping[str, Any], key: str) -> Any:
    """What the trial had at a swept key; nothing where that did not count for it."""
    return record["values"].get(key, value_at(experiment, key) if not record["number"] else None)


def _best(rows: Sequence[Row], metric: str, mode: str) -> Row | None:
    """Return the best trial that came to its end; where none did, the best of those that were stopped."""
    endings = {
        number: Ending(row[metric], whole=row["status"] == "completed")
        for number, row in enumerate(rows)
        if _is_number(row[metric])
    }
    return rows[best_first(endings, mode)[0]] if endings else None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _add_latency(
    experiment: Experiment,
    trials: Sequence[TrialFolder],
    rows: Sequence[Row],
    shape: tuple[int, int, int],
    num_classes: int,
) -> None:
    """Measure each student once, when nothing else runs: median milliseconds for one image."""
    measured: dict[str, float] = {}
    for trial, row in zip(trials, rows, strict=True):
        if row["parameters"] is None:  # it failed before there was a student
            continue
        student = configured(experiment, trial.record["values"]).student
        key = student.model_dump_json()
        if key not in measured:
            measured[key] = latency(build_described(student, num_classes, shape[0]), shape)["p50_ms"]
        row["latency_ms"] = measured[key]


def _finalists(experiment: Experiment, sweep: Path) -> dict[int, list[float]]:
    """Write ``finalists.csv``; return each finalist's metric for all its seeds."""
    assert experiment.tune is not None
    metric = experiment.tune.metric
    found: dict[int, list[float]] = defaultdict(list)
    rows: list[Row] = []
    for trial in finalists_of(sweep):
        value = _last(trial).get(metric) if trial.record["status"] == "completed" else None
        number, seed = trial.record["trial"], trial.record["seed"]
        rows.append({"trial": f"{number:04d}", "seed": seed, metric: value, "cause": trial.record["cause"]})
        if _is_number(value):
            found[number].append(value)
    if rows:
        write_atomically(sweep / "finalists.csv", pd.DataFrame(rows).to_csv(index=False))
    return dict(found)


def _final_result(found: Mapping[int, Sequence[float]], mode: str) -> dict[str, Any]:
    """Say which finalist is best by its mean, and with which it is tied."""
    best, *others = standings(found, mode)
    tied = tied_with(found, best.trial)
    return {
        "best_metric": best.mean,
        "best_trial": f"{best.trial:04d}",
        "spread": best.spread,
        "seeds": best.seeds,
        "finalists": [{"trial": f"{one.trial:04d}", **_numbers(one)} for one in (best, *others)],
        "tie": bool(tied),
        "tie_with": [f"{trial:04d}" for trial in tied],
    }


def _numbers(standing: Any) -> dict[str, Any]:
    return {"mean": standing.mean, "spread": standing.spread, "seeds": standing.seeds}


def _on_test_images(winners: Sequence[TrialFolder]) -> dict[str, Any]:
    """Return ``top1`` on the test images, the mean where the winner was trained with several seeds."""
    values: list[float] = []
    for winner in winners:
        if not winner.succeeded:  # stopped early, as the budget was spent
            continue
        try:
            values.append(_accuracy(winner))
        except DataError as error:
            return {"top1": None, "test_problem": str(error)}
    return {"top1": sum(values) / len(values) if values else None}


def _accuracy(winner: TrialFolder) -> float:
    """Return percent: the classifier's; where none was trained a k-NN's, which takes all training images along."""
    card = evaluate_run(winner.path, ("top1",), teachers=False)["student"]
    (value,) = (card or evaluate_run(winner.path, ("knn",), teachers=False)["student"]).values()
    return value


def _last(trial: TrialFolder) -> Mapping[str, Any]:
    history = trial.history()
    return history[-1] if history else {}
