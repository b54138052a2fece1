from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import load_experiment
from raydistill.errors import ConfigError, RunError
from raydistill.evaluation.card import evaluate_run
from raydistill.tuning.sweep import tune
from tests.conftest import digits

pytestmark = pytest.mark.usefixtures("ray_session")

RATES = [1e-6, 1e-7, 1e-8]


def rows_of(run: Path, name: str = "trials.csv") -> list[dict[str, str]]:
    with (run / name).open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_stops_bad_trials_early_and_ends_with_a_file_that_runs(tmp_path: Path) -> None:
    experiment = digits(
        tmp_path,
        train={"epochs": 4, "batch_size": 48},
        tune={
            "samples": 1,
            "concurrent": 1,
            "repeats": 2,
            "finalists": 1,
            "scheduler": {"name": "asha", "grace": 1, "reduction": 2},
            "space": {"train.optimizer.lr": {"grid": RATES}},
        },
    )
    result = tune(experiment)
    run = Path(result["run"])
    assert (result["trials"], result["completed"], result["stopped_early"]) == (4, 1, 3)
    assert result["best_values"] == {}
    best = load_experiment(result["best_config"])
    assert best.train.optimizer.lr == 0.05
    assert best.tune is None
    rows = rows_of(run)
    assert [row["trial"] for row in rows] == ["0000", "0001", "0002", "0003"]
    assert [float(row["train.optimizer.lr"]) for row in rows] == [0.05, *RATES]
    assert [row["status"] for row in rows] == ["completed", "stopped", "stopped", "stopped"]
    assert [int(row["epochs"]) < 4 for row in rows] == [False, True, True, True]
    for row in rows:
        trial = run / "trials" / row["trial"]
        assert json.loads((trial / "trial.json").read_text())["status"] == row["status"]
        assert (trial / "_SUCCESS").exists() == (row["status"] == "completed")
        assert not (trial / "checkpoints").exists()
    assert "top1" not in json.loads((run / "trials" / "0000" / "result.json").read_text())
    finals = rows_of(run, "finalists.csv")
    assert [(row["trial"], row["seed"]) for row in finals] == [("0000", "1"), ("0000", "2")]
    values = [float(row["val/top1"]) for row in finals]
    assert result["best_metric"] == pytest.approx(sum(values) / 2)
    assert result["seeds"] == 2
    assert result["tie"] is False
    cards = [evaluate_run(run / "finalists" / f"0000-seed{seed}", ["top1"]) for seed in (1, 2)]
    assert result["top1"] == pytest.approx(sum(card["student"]["top1"] for card in cards) / 2)


def test_what_fails_is_told_with_its_cause_and_the_sweep_goes_on(tmp_path: Path) -> None:
    space = {
        "train.optimizer.lr": {"grid": [0.05, 1e30]},
        "train.schedule.warmup": {"grid": [0.0, 5.0]},
        "train.epochs": {"grid": [2]},
    }
    result = tune(digits(tmp_path, tune={"samples": 1, "scheduler": {"name": "none"}, "space": space}))
    rows = rows_of(Path(result["run"]))
    told = {(row["train.optimizer.lr"], row["train.schedule.warmup"]): row for row in rows[1:]}
    assert result["failed"] == sum(row["status"] == "failed" for row in rows) >= 1
    assert "became NaN or infinite" in told["1e+30", "0.0"]["cause"]
    assert told["0.05", "0.0"]["status"] == "completed"


@pytest.mark.slow
def test_a_sweep_whose_trials_all_fail_says_why(tmp_path: Path) -> None:
    space = {"train.optimizer.momentum": {"grid": [0.5]}}
    rate = {"epochs": 2, "batch_size": 48, "optimizer": {"lr": 1e30}}
    with pytest.raises(RunError, match=r"all 2 trials failed .* became NaN or infinite"):
        tune(digits(tmp_path, train=rate, tune={"samples": 1, "space": space}))
    assert not (tmp_path / "runs" / "digits" / "_SUCCESS").exists()


def test_a_budget_ends_the_sweep(tmp_path: Path) -> None:
    section = {"samples": 9, "scheduler": {"name": "none"}, "budget": {"epochs": 3}, "concurrent": 1}
    result = tune(digits(tmp_path, tune=section | {"space": {"train.optimizer.lr": {"uniform": [0.01, 0.1]}}}))
    assert (result["trials"], result["completed"], result["stopped_early"]) == (2, 1, 1)
    assert result["epochs_spent"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["median", "hyperband"])
def test_other_schedulers_of_ray_decide_as_well(tmp_path: Path, scheduler: str) -> None:
    space = {"train.optimizer.lr": {"grid": [0.04, 0.06, 0.07, 1e-8]}}
    section = {"samples": 1, "scheduler": {"name": scheduler}, "space": space}
    result = tune(digits(tmp_path, train={"epochs": 4, "batch_size": 48}, tune=section))
    rows = rows_of(Path(result["run"]))
    assert result["trials"] == 5
    assert rows[4]["status"] == "stopped"
    assert result["completed"] >= 1
    assert result["failed"] == 0


@pytest.mark.slow
def test_a_trial_that_waits_and_is_stopped_by_the_report_of_another_is_told_as_stopped(tmp_path: Path) -> None:
    space = {"train.optimizer.lr": {"grid": [0.04, 1e-8, 0.06, 0.07]}}
    section = {"samples": 1, "concurrent": 1, "scheduler": {"name": "hyperband"}, "space": space}
    result = tune(digits(tmp_path, train={"epochs": 4, "batch_size": 48}, tune=section))
    run = Path(result["run"])
    rows = rows_of(run)
    assert (rows[2]["status"], rows[2]["epochs"]) == ("stopped", "1")
    assert "running" not in {row["status"] for row in rows}
    assert not list(run.glob("trials/*/checkpoints"))


@pytest.mark.slow
def test_an_experiment_that_changed_is_no_sweep_to_go_on_with(tmp_path: Path) -> None:
    def sweep(**train: Any) -> Any:
        section = {"samples": 1, "space": {"train.optimizer.lr": {"grid": [0.05]}}}
        return digits(tmp_path, train={"epochs": 1, "batch_size": 48} | train, tune=section)

    first = tune(sweep())
    assert tune(sweep(), resume=True) == first
    with pytest.raises(ConfigError, match=r"train\.batch_size changed"):
        tune(sweep(batch_size=60), resume=True)


@pytest.mark.slow
def test_a_sweep_that_goes_on_trains_nothing_again_that_it_had_stopped(tmp_path: Path) -> None:
    def sweep(samples: int) -> Any:
        space = {"train.optimizer.lr": {"loguniform": [0.0001, 0.1]}}
        scheduler = {"name": "asha", "grace": 1, "reduction": 2}
        section = {"samples": samples, "concurrent": 1, "scheduler": scheduler, "space": space}
        return digits(tmp_path, train={"epochs": 4, "batch_size": 48}, tune=section)

    run = Path(tune(sweep(4))["run"])
    before = rows_of(run)
    stopped = [run / "trials" / row["trial"] / "metrics.jsonl" for row in before if row["status"] == "stopped"]
    written = [path.stat().st_mtime_ns for path in stopped]
    assert stopped
    tune(sweep(5), resume=True)
    assert [path.stat().st_mtime_ns for path in stopped] == written
    assert rows_of(run)[: len(before)] == before


@pytest.mark.slow
def test_more_samples_go_on_where_the_sweep_ended(tmp_path: Path) -> None:
    def sweep(samples: int) -> Any:
        section = {"samples": samples, "space": {"train.optimizer.lr": {"loguniform": [0.01, 0.1]}}}
        return digits(tmp_path, train={"epochs": 1, "batch_size": 48}, tune=section)

    first = tune(sweep(1))
    run = Path(first["run"])
    before = rows_of(run)
    second = tune(sweep(2), resume=True)
    assert second["trials"] == 3
    assert rows_of(run)[:2] == before


def test_trials_with_workers_of_their_own_cannot_pause(tmp_path: Path) -> None:
    section = {"scheduler": {"name": "hyperband"}, "space": {"train.optimizer.lr": {"grid": [0.05]}}}
    with pytest.raises(ConfigError, match=r"set tune\.scheduler\.name=asha"):
        tune(digits(tmp_path, scale={"workers": 2}, tune=section))


@pytest.mark.slow
def test_a_trial_may_have_several_workers_and_be_stopped(tmp_path: Path) -> None:
    """What a trial's workers took is there for those of the next one."""
    section = {
        "samples": 1,
        "concurrent": 1,
        "scheduler": {"reduction": 2},
        "space": {"train.optimizer.lr": {"grid": [1e-6, 1e-5]}},
    }
    train = {"epochs": 2, "batch_size": 48}
    result = tune(digits(tmp_path, scale={"workers": 2, "cpus_per_worker": 1}, train=train, tune=section))
    rows = rows_of(Path(result["run"]))
    assert [row["status"] for row in rows] == ["completed", "stopped", "stopped"]
    assert result["best_trial"] == "0000"
    attempts = (Path(result["run"]) / "trials" / "0001" / "logs" / "attempts.jsonl").read_text().splitlines()
    assert [json.loads(line)["workers"] for line in attempts] == [2]
