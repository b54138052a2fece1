from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from raydistill.config import load_experiment
from raydistill.errors import RunError
from raydistill.tuning.sweep import tune
from tests.conftest import digits

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_sweep_stops_bad_trials_early_and_ends_with_a_file_that_runs(tmp_path: Path) -> None:
    experiment = digits(
        tmp_path,
        train={"epochs": 4, "batch_size": 48},
        tune={
            "samples": 1,
            "concurrent": 1,
            "scheduler": {"name": "asha", "grace": 1, "reduction": 2},
            "space": {"train.optimizer.lr": {"grid": [0.05, 1e-6, 1e-7, 1e-8]}},
        },
    )
    result = tune(experiment)
    run = Path(result["run"])
    assert result["trials"] == 4
    assert result["stopped_early"] >= 1
    assert result["best_values"] == {"train.optimizer.lr": 0.05}
    best = load_experiment(result["best_config"])
    assert best.train.optimizer.lr == 0.05
    assert best.tune is None
    with (run / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train.optimizer.lr"]) for row in rows] == [0.05, 1e-6, 1e-7, 1e-8]
    assert sum(row["status"] == "stopped" for row in rows) == result["stopped_early"]
    assert float(rows[0]["val/top1"]) == result["best_metric"]
    for row in rows:
        trial = run / "trials" / row["trial"]
        history = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert len(history) >= int(row["epochs"])
        assert (trial / "_SUCCESS").exists() == (row["status"] == "completed")
    assert "top1" not in json.loads((run / "trials" / rows[0]["trial"] / "result.json").read_text())


def test_a_sweep_whose_trials_all_fail_says_why(tmp_path: Path) -> None:
    space = {"train.optimizer.lr": {"grid": [1e30, 1e31]}}
    with pytest.raises(RunError, match="became NaN or infinite"):
        tune(digits(tmp_path, tune={"samples": 1, "space": space}))
    assert not (tmp_path / "runs" / "digits" / "_SUCCESS").exists()
