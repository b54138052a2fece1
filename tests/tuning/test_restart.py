"""Sweeps whose driver, trial or node is killed come to what uninterrupted ones come to; whole commands."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from raydistill.config import Experiment
from tests.commands import PATIENCE, Command
from tests.conftest import digits
from tests.disks import small_file_system
from tests.nodes import SOON_MISSED, Nodes, environment_of

pytestmark = pytest.mark.slow


def sweep(folder: Path) -> Experiment:
    return digits(
        folder,
        name="swept",
        data={"name": "digits", "subset": 600, "validation": 0.2, "augment": {"crop": 1}},
        train={"epochs": 9, "batch_size": 32},
        tune={
            "samples": 10,
            "search": "bohb",
            "repeats": 2,
            "finalists": 2,
            "concurrent": 2,
            "space": {
                "train.optimizer.lr": {"loguniform": [0.005, 0.3]},
                "train.optimizer.name": {"choice": ["sgd", "adamw"]},
                "train.optimizer.momentum": {"uniform": [0.0, 0.9], "when": {"train.optimizer.name": "sgd"}},
            },
        },
    )


class Sweep(Command):
    """``raydistill tune``."""

    verb = "tune"

    @property
    def run(self) -> Path:
        return self.experiment.folder

    def finish(self) -> str:
        """Wait for the end; return what was said on stderr, in which nobody finds a traceback."""
        said, complained = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, (said, complained)
        assert "Traceback" not in complained
        return complained

    def found(self) -> dict[str, pd.DataFrame]:
        """The tables without times."""
        trials = pd.read_csv(self.run / "trials.csv").drop(columns="seconds")
        return {"trials": trials, "finalists": pd.read_csv(self.run / "finalists.csv")}

    def worker_of(self, trial: str) -> int | None:
        """The process that trains a trial, once an epoch of it is over."""
        folder = self.run / "trials" / trial
        if not (folder / "metrics.jsonl").is_file() or not (folder / "metrics.jsonl").read_text():
            return None
        record = json.loads((folder / "trial.json").read_text())
        return record.get("pid") if record["status"] == "running" else None

    def ended_trials(self) -> int:
        """How many trials are over."""
        records = [json.loads(path.read_text()) for path in self.run.glob("trials/*/trial.json")]
        return sum(record["status"] != "running" for record in records)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, pd.DataFrame]]:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        command = Sweep(sweep(tmp_path_factory.mktemp("whole")), environment_of(short) | SOON_MISSED)
        command.start()
        command.finish()
        yield command.found()


def assert_same(found: dict[str, pd.DataFrame], wanted: dict[str, pd.DataFrame]) -> None:
    for name, table in wanted.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)


def test_a_sweep_whose_driver_is_killed_goes_on_to_the_same_decisions(
    tmp_path: Path, uninterrupted: dict[str, pd.DataFrame]
) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        command = Sweep(sweep(tmp_path), environment_of(short) | SOON_MISSED)
        command.start()
        for place in ("trials/0001/metrics.jsonl", "trials/0005/metrics.jsonl", "finalists"):
            command.until((command.run / place).exists)
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.communicate()
            command.start("--resume")
        command.finish()
        assert_same(command.found(), uninterrupted)


def test_a_sweep_whose_disk_was_full_goes_on_to_the_same_decisions(
    tmp_path: Path, small_disk: Path, uninterrupted: dict[str, pd.DataFrame]
) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        command = Sweep(sweep(tmp_path).override({"output": str(small_disk)}), environment_of(short) | SOON_MISSED)
        command.start()
        command.until((command.run / "trials" / "0002" / "metrics.jsonl").exists)
        fill(small_disk / "ballast")
        _, complained = command.process.communicate(timeout=PATIENCE)
        assert command.process.returncode == 1, complained
        assert "Traceback" not in complained
        assert "No space left" in complained.splitlines()[-1]
        (small_disk / "ballast").unlink()
        command.start("--resume")
        command.finish()
        assert_same(command.found(), uninterrupted)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path / "small", "64m") as folder:
        yield folder


def population(folder: Path) -> Experiment:
    space = {"train.optimizer.lr": {"loguniform": [0.001, 0.3]}, "methods.ce.label_smoothing": {"uniform": [0.0, 0.3]}}
    return digits(
        folder,
        name="swept",
        data={"name": "digits", "subset": 600, "validation": 0.2, "augment": {"crop": 1}},
        train={"epochs": 6, "batch_size": 32},
        tune={"samples": 3, "scheduler": {"name": "pbt", "grace": 2}, "concurrent": 2, "space": space},
    )


def after(run: Path, trial: str, generation: int) -> Callable[[], bool]:
    """Whether a trial has just brought a generation to its end."""
    path = run / "trials" / trial / "generations.jsonl"
    return lambda: path.is_file() and len(path.read_text().splitlines()) == generation


def test_a_population_whose_driver_is_killed_goes_on_to_the_same_takeovers(tmp_path: Path) -> None:
    kills = [("0001", 1), ("0003", 2)]
    tables, changes = [], []
    for name, endings in (("whole", []), ("killed", kills)):
        (tmp_path / name).mkdir()
        with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
            command = Sweep(population(tmp_path / name), environment_of(short) | SOON_MISSED)
            command.start()
            for trial, generation in endings:
                command.until(after(command.run, trial, generation))
                os.killpg(command.process.pid, signal.SIGKILL)
                command.process.communicate()
                command.start("--resume")
            command.finish()
        tables.append(pd.read_csv(command.run / "trials.csv").drop(columns="seconds"))
        records = [json.loads(path.read_text()) for path in sorted(command.run.glob("trials/*/trial.json"))]
        changes.append([record.get("changes") for record in records])
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert changes[0] == changes[1]
    assert any(changes[0])


def fill(ballast: Path) -> None:
    """Leave no byte free."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))


def test_a_sweep_outlives_a_trials_process_and_a_node(
    tmp_path: Path, nodes: Nodes, uninterrupted: dict[str, pd.DataFrame]
) -> None:
    command = Sweep(sweep(tmp_path), nodes.environment)
    command.start()
    os.kill(command.until(lambda: command.worker_of("0000")), signal.SIGKILL)
    nodes.kill(command.until(lambda: command.worker_of("0002") or command.worker_of("0003")))
    nodes.add()
    assert "trial 0 was lost and begins again" in command.finish()
    assert_same(command.found(), uninterrupted)
