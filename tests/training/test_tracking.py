"""Weights & Biases and MLflow beside run folders; the real packages, without a network and without Ray."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment, flatten
from raydistill.errors import ConfigError
from raydistill.training import following, tracking
from raydistill.training.following import Follower, follow
from raydistill.training.run import run
from raydistill.training.run_folder import RunFolder
from raydistill.training.tracking import check_trackers, tracked
from tests.conftest import digits
from tests.training.sessions import session_of


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data base of MLflow's with nothing in it, which takes seconds to make."""
    mlflow = pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    with contextlib.chdir(path.parent):
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data base of MLflow's; what it keeps as files goes below the working directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty, tmp_path)
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def runs_in(store: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("raydistill")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def values_of(store: str, run_id: str, metric: str) -> dict[int, float]:
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=store).get_metric_history(run_id, metric)
    assert len({each.step for each in found}) == len(found)
    return {each.step: each.value for each in found}


def trained(experiment: Experiment, folder: RunFolder) -> None:
    session = session_of(experiment)
    run(session, folder, after_epoch=lambda metrics, session: None)


def test_nothing_is_tracked_where_nobody_asks(tmp_path: Path) -> None:
    experiment = digits(tmp_path)
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    check_trackers(experiment)
    with tracked(experiment, folder, kind="train"):
        trained(experiment, folder)
    assert {path.name for path in (folder.path / "logs").iterdir()} == {"progress.json"}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_told_first(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name, as these packages make them, is not the package."""
    experiment = digits(tmp_path, track={name: {}})
    (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match=rf"track\.{name}: .* pip install 'raydistill\[tracking\]'"):
        check_trackers(experiment)


def test_mlflow_gets_a_run(tmp_path: Path, store: str) -> None:
    experiment = digits(tmp_path, track={"mlflow": {"uri": store, "tags": {"paper": "table 1"}}})
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    with tracked(experiment, folder, kind="train"):
        trained(experiment, folder)
    assert folder.notices() == []
    (found,) = runs_in(store)
    assert found.info.status == "FINISHED" and found.info.run_name == "digits"
    assert found.data.tags["paper"] == "table 1" and found.data.tags["raydistill.kind"] == "train"
    assert found.data.params == {name: str(value) for name, value in flatten(experiment.to_dict()).items()}
    assert found.data.params["train.optimizer.lr"] == "0.05"
    for name in ("train/loss", "val/top1", "time/student", "images_per_s"):
        assert values_of(store, found.info.run_id, name) == {
            record["epoch"]: pytest.approx(record[name]) for record in folder.history()
        }
    assert found.data.metrics["result/top1"] == pytest.approx(folder.result()["top1"])
    artifacts = Path(found.info.artifact_uri.removeprefix("file://"))
    for name in ("config.yaml", "result.json", "metrics.csv"):
        assert (artifacts / name).read_text() == (folder.path / name).read_text()


@contextmanager
def followed(experiment: Experiment, folder: RunFolder, *, kind: str) -> Iterator[Follower]:
    """What the process beside a run does, in this one."""
    (name,) = experiment.track.asked
    follower = Follower(name, getattr(experiment.track, name), folder, kind)
    try:
        yield follower
    except Crash:
        follower.end("stopped")
        raise
    follower.end("finished")


class Crash(BaseException):
    """Ends a run as a kill does, as far as the folder can tell."""


def cut_after_the_first_epoch(experiment: Experiment, folder: RunFolder) -> None:
    def stop(metrics: dict[str, float], session: object) -> None:
        raise Crash

    with pytest.raises(Crash), followed(experiment, folder, kind="train"):
        run(session_of(experiment), folder, after_epoch=stop)


def test_a_resumed_run_goes_on_in_the_same_one_of_mlflow(tmp_path: Path, store: str) -> None:
    """Cut after its first epoch, with other values for what MLflow keeps; the epochs before are not told again."""
    experiment = digits(tmp_path, train={"epochs": 3, "batch_size": 48}, track={"mlflow": {"uri": store}})
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    cut_after_the_first_epoch(experiment, folder)
    (found,) = runs_in(store)
    assert found.info.status == "KILLED"
    folder.begin(experiment.override({"train.epochs": 2}), resume=True)
    with followed(experiment, folder, kind="train"):
        trained(experiment, folder)
    assert folder.notices() == []
    (again,) = runs_in(store)
    assert (again.info.run_id, again.info.status) == (found.info.run_id, "FINISHED")
    assert again.data.params["train.epochs"] == "3"
    assert set(values_of(store, again.info.run_id, "train/loss")) == {1, 2, 3}


def test_a_new_run_of_the_same_name_is_another_one(tmp_path: Path, store: str) -> None:
    experiment = digits(tmp_path, train={"epochs": 1, "batch_size": 48}, track={"mlflow": {"uri": store}})
    for _ in range(2):
        folder = RunFolder(experiment.folder)
        folder.begin(experiment)
        with followed(experiment, folder, kind="train"):
            trained(experiment, folder)
    assert len(runs_in(store)) == 2


def test_a_run_that_fails_is_marked(tmp_path: Path, store: str) -> None:
    experiment = digits(tmp_path, track={"mlflow": {"uri": store}})
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    with pytest.raises(ValueError, match="gone"), tracked(experiment, folder, kind="train"):
        trained(experiment, folder)
        raise ValueError("gone")
    assert [found.info.status for found in runs_in(store)] == ["FAILED"]


def test_trials_are_nested_in_their_sweep(tmp_path: Path, store: str) -> None:
    tune = {"samples": 2, "space": {"train.optimizer.lr": {"uniform": [0.01, 0.1]}}}
    experiment = digits(tmp_path, tune=tune, track={"mlflow": {"uri": store}})
    sweep = RunFolder(experiment.folder)
    sweep.begin(experiment)
    with followed(experiment, sweep, kind="tune"):
        for name in ("one", "two"):
            chosen = experiment.override({"name": name, "output": str(sweep.path / "trials"), "tune": None})
            trial = RunFolder(chosen.folder)
            trial.begin(chosen)
            trained(chosen, trial)
            if name == "one":
                trial.succeed()
        (sweep.path / "trials.csv").write_text("trial,status\none,completed\ntwo,stopped\n")
        sweep.write_result({"best_metric": 12.5})
    assert sweep.notices() == []
    found = {run.info.run_name: run for run in runs_in(store)}
    parent = found["digits"]
    assert parent.data.metrics["result/best_metric"] == 12.5
    assert {name: run.info.status for name, run in found.items()} == {
        "digits": "FINISHED",
        "one": "FINISHED",
        "two": "KILLED",
    }
    for name in ("one", "two"):
        assert found[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert set(values_of(store, found[name].info.run_id, "val/top1")) == {1, 2}


def test_a_run_whose_watcher_was_killed_is_marked(tmp_path: Path, store: str) -> None:
    """The process beside it hears no word, and tells all the same."""
    experiment = digits(tmp_path, track={"mlflow": {"uri": store}})
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    trained(experiment, folder)
    watcher = subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE)
    command = [sys.executable, "-m", "raydistill.training.following", "mlflow", str(folder.path), "train"]
    follower = subprocess.Popen(command, stdin=watcher.stdout)
    watcher.kill()
    watcher.communicate()
    assert follower.wait(60.0) == 0
    (found,) = runs_in(store)
    assert found.info.status == "KILLED"
    assert set(values_of(store, found.info.run_id, "train/loss")) == {1, 2}


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(("server", "patience"), [("silent", 3.0), ("gone", 30.0)])
def test_a_server_that_does_not_answer_is_one_notice(
    tmp_path: Path, store: str, server: str, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WAIT_AT_THE_END_S", patience)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with silent_server() as address:
        uri = address if server == "silent" else "http://127.0.0.1:9"
        experiment = digits(tmp_path, track={"mlflow": {"uri": uri}})
        folder = RunFolder(experiment.folder)
        folder.begin(experiment)
        with tracked(experiment, folder, kind="train"):
            trained(experiment, folder)
            ended = time.monotonic()
        assert time.monotonic() - ended < patience + 1.0
    assert len(folder.history()) == 2 and folder.result()
    (said,) = folder.notices()
    assert said.startswith("track.mlflow: ")
    assert ("did not answer in time" if server == "silent" else "The run goes on") in said


def test_a_tracker_that_comes_back_gets_what_it_missed(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data base is damaged until the first epoch is over."""
    monkeypatch.setattr(following, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(following, "TRY_AGAIN_AFTER_S", 0.1)
    (tmp_path / "mlflow.db").write_text("not a data base, but long enough to be read as the head of one" * 10)
    experiment = digits(tmp_path, track={"mlflow": {"uri": store}})
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    deadline, notes = time.monotonic() + 60.0, list[str]()

    def repair(metrics: dict[str, float], session: object) -> None:
        while not notes and time.monotonic() < deadline:
            time.sleep(0.05)
        if metrics["epoch"] == 1:
            os.truncate(tmp_path / "mlflow.db", 0)  # an empty one is sound

    reading, writing = os.pipe()
    with ThreadPoolExecutor() as pool, os.fdopen(reading) as words:
        done = pool.submit(follow, Follower("mlflow", experiment.track.mlflow, folder, "train"), words, notes.append)
        with os.fdopen(writing, "w") as word:
            run(session_of(experiment), folder, after_epoch=repair)
            word.write("finished\n")
        done.result()
    assert len(notes) == 1 and "not a database" in notes[0]
    (found,) = runs_in(store)
    assert set(values_of(store, found.info.run_id, "train/loss")) == {1, 2}
    assert found.info.status == "FINISHED"


def records_of(folder: Path) -> list[Any]:
    """What wandb has written for its server, of all starts of a run."""
    from wandb.proto.wandb_internal_pb2 import Record

    files = sorted(folder.glob("logs/wandb/offline-run-*/*.wandb"))
    return [Record.FromString(content) for file in files for content in entries(file.read_bytes())]


def entries(log: bytes) -> Iterator[bytes]:
    """The entries of a log in the format of LevelDB, which begins with seven bytes of wandb's own."""
    place, entry = 7, b""
    while place + 7 <= len(log):
        left = (1 << 15) - place % (1 << 15)  # of a block; an entry's head of seven bytes is never cut
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", log, place + 4)
        entry += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several parts
            yield entry
            entry = b""


def history_of(records: list[Any]) -> list[dict[str, Any]]:
    rows = [record.history.item for record in records if record.HasField("history")]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def test_wandb_gets_a_run_and_a_resumed_one_goes_on_in_it(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    track = {"wandb": {"project": "students", "group": "seeds", "tags": ["small"], "mode": "offline"}}
    experiment = digits(tmp_path, train={"epochs": 3, "batch_size": 48}, track=track)
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    cut_after_the_first_epoch(experiment, folder)
    with followed(experiment, folder, kind="train"):
        trained(experiment, folder)
    assert folder.notices() == []
    records = records_of(folder.path)
    begun = [record.run for record in records if record.HasField("run") and record.run.project]
    assert {each.run_id for each in begun} == {json.loads((folder.path / "logs" / "wandb.json").read_text())["id"]}
    first = begun[0]
    assert (first.project, first.run_group, first.job_type, list(first.tags)) == (
        "students",
        "seeds",
        "train",
        ["small"],
    )
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert config["train.optimizer.lr"] == 0.05 and config["student.model"] == "resnet8"
    told = {row["epoch"]: row["train/loss"] for row in history_of(records)}
    assert told == {record["epoch"]: pytest.approx(record["train/loss"]) for record in folder.history()}
    assert len(history_of(records)) == 3
    summary = [item for record in records if record.HasField("summary") for item in record.summary.update]
    found = {item.key: json.loads(item.value_json) for item in summary}
    assert found["top1"] == pytest.approx(folder.result()["top1"]) and found["status"] == "finished"
    files = {path.name for path in folder.path.glob("logs/wandb/offline-run-*/files/*")}
    assert {"config.yaml", "result.json", "metrics.csv"} <= files
    exits = [record.exit.exit_code for record in records if record.HasField("exit")]
    assert exits == [0, 0]


def test_wandb_groups_trials_and_gives_stages_an_axis_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    experiment = digits(tmp_path, track={"wandb": {"mode": "offline"}})
    sweep = RunFolder(experiment.folder)
    sweep.begin(experiment)
    trial = RunFolder(sweep.path / "trials" / "one")
    with followed(experiment, sweep, kind="tune"):
        trial.begin(experiment.override({"name": "one"}))
        trial.write_pretraining([{"stage": "ft", "epoch": 1, "train/loss": 0.5}])
        trial.write_history([{"epoch": 1, "train/loss": 0.25}])
        trial.write_progress({"epoch": 0, "step": 1})
    assert sweep.notices() == trial.notices() == []
    records = records_of(trial.path)
    (first,) = [record.run for record in records if record.HasField("run") and record.run.project][:1]
    assert (first.run_group, first.job_type, first.display_name) == ("digits", "trial", "one")
    rows = [{name: value for name, value in row.items() if name[0] != "_"} for row in history_of(records)]
    assert rows == [{"stage/ft/epoch": 1, "stage/ft/train/loss": 0.5}, {"epoch": 1, "train/loss": 0.25}]
    axes = {
        record.metric.glob_name or record.metric.name: record.metric.step_metric
        for record in records
        if record.HasField("metric")
    }
    assert axes["*"] == "epoch" and axes["stage/ft/*"] == "stage/ft/epoch"
    assert not list(sweep.path.glob("logs/wandb/offline-run-*"))


def test_wandb_that_cannot_begin_is_one_notice(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    experiment = digits(tmp_path, track={"wandb": {"mode": "offline", "tags": ["x" * 100]}})
    folder = RunFolder(experiment.folder)
    folder.begin(experiment)
    with tracked(experiment, folder, kind="train"):
        trained(experiment, folder)
    (said,) = folder.notices()
    assert said.startswith("track.wandb: ")
