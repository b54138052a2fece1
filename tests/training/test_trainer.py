"""Ray Train around the loop: whole runs, recovery, full disks."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raydistill import display
from raydistill.config import Experiment, load_experiment
from raydistill.errors import ConfigError, DataError, RunError
from raydistill.models.weights import load_weights
from raydistill.models.zoo import build_model
from raydistill.teachers.cache.build import build_cache
from raydistill.training.run_folder import RunFolder
from raydistill.training.teacher import train_teacher
from raydistill.training.trainer import POLL_S, train, watched
from tests.conftest import digits, teaching
from tests.data_room.files import write_folder
from tests.disks import small_file_system
from tests.training.sessions import without_times

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_run_explains_itself(tmp_path: Path, teacher_weights: Path) -> None:
    methods = {"ce": {"weight": 0.1}, "kd": {"weight": 0.9}}
    asked = {"epochs": 2, "batch_size": 48, "agreement": ["neighbours@5"]}
    experiment = digits(tmp_path, teacher=teaching(teacher_weights), methods=methods, train=asked)
    build_cache(experiment)
    told: list[Path] = []
    result = train(experiment, watch=lambda folder: told.append(folder.path))
    run = tmp_path / "runs" / "digits"
    assert result["run"] == str(run)
    assert result["teacher_forwards"] == 0
    assert result["epochs"] == 2
    assert 0.0 <= result["top1"] <= 100.0
    assert set(told) == {run}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "metrics.csv", "result.json", "_SUCCESS"} <= {
        path.name for path in run.iterdir()
    }
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = {"epoch", "train/loss", "train/ce", "train/kd", "val/top1", "val/neighbours@5", "images_per_s", "seconds"}
    assert all(wanted <= set(record) for record in records)
    for record in records:
        assert record["train/loss"] == pytest.approx(0.1 * record["train/ce"] + 0.9 * record["train/kd"], rel=1e-4)
    assert list(run.glob("events.out.tfevents.*"))
    assert list(run.glob("checkpoints/checkpoint_*/state.pt"))
    assert load_experiment(run / "config.yaml") == experiment
    load_weights(build_model("resnet8", 10, in_channels=1), run / "student.safetensors")


@pytest.mark.slow
def test_a_finished_run_is_resumed_to_the_same_result(tmp_path: Path) -> None:
    experiment = digits(tmp_path)
    first = train(experiment)
    assert train(experiment, resume=True) == first


def test_an_interrupt_leaves_nothing_running(tmp_path: Path) -> None:
    """In a notebook the process and its Ray live on: no thread still trains, and the CPUs are free for what is next."""
    experiment = digits(tmp_path, train={"epochs": 10_000, "batch_size": 48})
    before = set(threading.enumerate())

    def interrupt(folder: RunFolder) -> None:
        if folder.history():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(experiment, watch=interrupt)
    assert set(threading.enumerate()) <= before
    done = len(RunFolder(experiment.folder).history())
    result = train(experiment.override({"train.epochs": done + 1}), resume=True)
    assert result["epochs"] == done + 1


def test_an_interrupt_waits_for_the_work_to_let_go(tmp_path: Path) -> None:
    let_go = threading.Event()

    def work(leave: threading.Event) -> None:
        time.sleep(2.5 * POLL_S)  # not as the wait begins or ends
        os.kill(os.getpid(), signal.SIGINT)
        assert leave.wait(10)
        time.sleep(2.5 * POLL_S)
        let_go.set()

    with pytest.raises(KeyboardInterrupt):
        watched(work, RunFolder(tmp_path), lambda folder: None)
    assert let_go.is_set()


def test_a_teacher_goes_where_the_experiment_looks_for_it(tmp_path: Path) -> None:
    weights = tmp_path / "runs" / "big" / "model.safetensors"
    experiment = digits(
        tmp_path, teacher={"model": "resnet14", "weights": str(weights), "train": {"epochs": 1, "batch_size": 48}}
    )
    result = train_teacher(experiment)
    assert result["weights"] == str(weights)
    assert result["epochs"] == 1
    load_weights(build_model("resnet14", 10, in_channels=1), weights)


def test_two_workers_share_the_global_batch(tmp_path: Path, teacher_weights: Path) -> None:
    """Each of them compares the student with the teacher on its own, since each validates."""
    sections = {"train": {"epochs": 2, "batch_size": 48, "agreement": ["cka"]}, "scale": {"workers": 2}}
    result = train(digits(tmp_path, teacher=teaching(teacher_weights) | {"source": "live"}, **sections))
    assert result["epochs"] == 2 and result["teacher_forwards"] == 48
    last = json.loads((Path(result["run"]) / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["train/loss"] < 3.0 and 0.0 < last["val/cka"] < 1.0


@pytest.mark.slow
def test_two_workers_run_the_stages_before_distillation(tmp_path: Path, teacher_weights: Path) -> None:
    staged = {"ab": {"pretrain_epochs": 2}, "ft": {"pretrain_epochs": 2, "pretrain_lr": 0.1, "weight": 10.0}}
    teacher = teaching(teacher_weights) | {"source": "live"}
    result = train(digits(tmp_path, teacher=teacher, methods={"ce": {}, **staged}, scale={"workers": 2}))
    folder = RunFolder(Path(result["run"]))
    records = folder.pretraining()
    assert [(record["stage"], record["epoch"]) for record in records] == [("ab", 1), ("ab", 2), ("ft", 1), ("ft", 2)]
    assert records[1]["train/loss"] < records[0]["train/loss"]
    assert [record["epoch"] for record in folder.history()] == [1, 2]


@pytest.mark.slow
def test_networks_that_teach_each_other_share_the_global_batch_too(tmp_path: Path) -> None:
    methods = {"ce": {}, "dml": {}, "crd": {"negatives": 32, "dimension": 16}}
    result = train(digits(tmp_path, scale={"workers": 2}, peers=[{"model": "wrn_16_1"}], methods=methods))
    last = RunFolder(Path(result["run"])).history()[-1]
    assert all(last[f"train/{prefix}{name}"] > 0.0 for prefix in ("", "peer1/") for name in methods)
    assert max(last["train/ce"], last["train/peer1/ce"]) < 3.0
    load_weights(build_model("wrn_16_1", 10, in_channels=1), Path(result["run"]) / "peer1.safetensors")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_told_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = digits(tmp_path, train={"epochs": 3, "batch_size": 48, "checkpoint": {"steps": 3, "keep": 9}})
    first = train(experiment)
    run, student = Path(first["run"]), (Path(first["run"]) / "student.safetensors").read_bytes()
    (run / "_SUCCESS").unlink()
    *_, before, last = sorted((run / "checkpoints").glob("checkpoint_*"))
    content = bytearray((last / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (last / "state.pt").write_bytes(content)
    capsys.readouterr()
    with display.training(experiment, 3) as watch:
        second = train(experiment, resume=True, watch=watch)
    (said,) = RunFolder(run).notices()
    assert f"{last.name} is damaged" in said and before.name in said
    assert said in capsys.readouterr().err
    assert (run / "student.safetensors").read_bytes() == student
    assert without_times(first) == without_times(second)
    assert second["seconds"] > 0.0


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    train_config = {"epochs": 4, "batch_size": 48}
    whole = train(digits(tmp_path, name="whole", train=train_config))
    killer = Killer(tmp_path / "runs" / "killed")
    with killer:
        killed = train(digits(tmp_path, name="killed", train=train_config))
    assert killer.hits == 1
    left, right = (load_file(Path(result["run"]) / "student.safetensors") for result in (whole, killed))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert [record["epoch"] for record in RunFolder(Path(killed["run"])).history()] == [1, 2, 3, 4]


class Killer:
    """Sends SIGKILL to the worker once, after its first epoch."""

    def __init__(self, run: Path) -> None:
        self.run, self.hits, self.stop = run, 0, threading.Event()
        self.thread = threading.Thread(target=self._hunt, daemon=True)

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join()

    def _hunt(self) -> None:
        while not self.stop.is_set() and not self.hits:
            if RunFolder(self.run).history():
                os.kill(json.loads((self.run / "logs" / "startup.json").read_text())["pid"], signal.SIGKILL)
                self.hits += 1
            time.sleep(0.001)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "small", "192k") as folder:
        yield folder


def test_a_full_disk_leaves_no_run_that_looks_whole(tmp_path: Path, small_disk: Path) -> None:
    experiment: Experiment = digits(tmp_path, output=str(small_disk), scale={"max_failures": 0})
    with pytest.raises(RunError, match="No space left"):
        train(experiment)
    assert not (small_disk / "digits" / "_SUCCESS").exists()


def test_what_only_the_workers_can_tell_is_still_an_error_of_the_input(tmp_path: Path, teacher_weights: Path) -> None:
    experiment = digits(tmp_path, teacher=teaching(teacher_weights) | {"source": "live"}, methods={"crd": {}})
    with pytest.raises(ConfigError, match="negatives: 16384 is too many"):
        train(experiment)
    assert not (tmp_path / "runs" / "digits").exists()


@pytest.mark.slow
def test_damaged_images_that_may_be_skipped_are_counted_and_listed(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", each=12)
    damaged = tmp_path / "images" / "train" / "cat" / "damaged.png"
    damaged.write_bytes(b"not an image")
    data = {"name": "image_folder", "root": str(tmp_path / "images"), "image_size": 8, "on_error": "skip"}
    result = train(digits(tmp_path, data=data | {"max_errors": 0.1}, train={"epochs": 1, "batch_size": 8}))
    assert result["skipped_images"] == 1
    assert "damaged.png" in (Path(result["run"]) / "skipped.txt").read_text()
    with pytest.raises(DataError, match=r"damaged\.png"):
        train(digits(tmp_path, data=data | {"on_error": "stop"}))
