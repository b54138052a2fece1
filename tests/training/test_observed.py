"""Profiled and tracked runs as Ray Train and Ray Tune run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydistill.training.run_folder import RunFolder
from raydistill.training.trainer import train
from raydistill.tuning.sweep import tune
from tests.conftest import digits

pytestmark = pytest.mark.usefixtures("ray_session")


def runs_in(store: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("raydistill")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


@pytest.mark.slow
def test_of_several_workers_the_first_one_is_profiled(tmp_path: Path) -> None:
    scale = {"workers": 2, "cpus_per_worker": 1}
    settings = {"epochs": 1, "batch_size": 64}  # three steps
    result = train(digits(tmp_path, scale=scale, train=settings), profile=True)
    folder = RunFolder(Path(result["run"]))
    (said,) = folder.notices()
    assert "profile of step 3 of epoch 1, after 2 to warm up" in said
    recorded = Path(result["profile"])
    assert recorded == folder.path / "logs" / "profile"
    assert {path.name for path in recorded.iterdir()} == {"profile.txt", "trace.pt.trace.json"}
    assert "rank 0" in (recorded / "profile.txt").read_text()
    (record,) = folder.history()
    assert record["time/student"] > 0.0 and record["time/backward"] > 0.0


@pytest.mark.slow
def test_a_tracked_run_is_one_run_whatever_its_workers_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment = digits(tmp_path, scale={"workers": 2, "cpus_per_worker": 1}, track={"mlflow": {"uri": store}})
    result = train(experiment)
    (found,) = runs_in(store).values()
    assert found.info.status == "FINISHED"
    assert found.data.metrics["result/top1"] == pytest.approx(result["top1"])
    assert (Path(found.info.artifact_uri) / "result.json").read_text() == (
        Path(result["run"]) / "result.json"
    ).read_text()


@pytest.mark.slow
def test_trials_of_a_sweep_end_at_the_tracker_as_they_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    space = {"train.optimizer.lr": {"grid": [0.05, 1e-6, 1e-7]}}
    asha = {"name": "asha", "grace": 1, "reduction": 2}
    sweep = {"samples": 1, "concurrent": 1, "scheduler": asha, "space": space}
    settings = {"epochs": 4, "batch_size": 48}
    result = tune(digits(tmp_path, train=settings, tune=sweep, track={"mlflow": {"uri": store}}))
    assert result["stopped_early"] >= 1
    found = runs_in(store)
    parent = found.pop("digits")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["result/best_metric"] == pytest.approx(result["best_metric"])
    assert {trial.data.tags["mlflow.parentRunId"] for trial in found.values()} == {parent.info.run_id}
    ended = [trial.info.status for trial in found.values()]
    assert ended.count("KILLED") == result["stopped_early"]
    assert ended.count("FINISHED") == result["trials"] - result["stopped_early"]
