"""Runs whose driver, worker or node is killed become what uninterrupted ones are; whole commands on several nodes."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydistill.config import Experiment
from raydistill.training.run_folder import RunFolder
from raydistill.training.shelf import Shelf
from tests.commands import PATIENCE, Command
from tests.conftest import digits, teaching
from tests.methods.cases import SMALL
from tests.nodes import SOON_MISSED, Nodes, environment_of
from tests.training.sessions import without_times

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 10, 20
METHODS = {"kd": 2, "crd": 1, "cocord": 1, "protocpc": 1, "compress": 1}
"""Each with its number of workers."""


class Run(Command):
    """The command ``train`` of one experiment."""

    verb = "train"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.experiment.folder)

    def until_works(self, *, after: int, not_by: int | None) -> int:
        """Wait for a checkpoint after a step; return the process that wrote it, which is another than ``not_by``."""
        pid: int = self.until(lambda: (pid := self.worker()) != not_by and pid)
        self.until(lambda: self.step > after)
        return pid

    def end(self) -> None:
        said = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, said

    @property
    def step(self) -> int:
        """Of the newest checkpoint."""
        names = Shelf(self.folder.path / "checkpoints").names()
        return int(names[-1][-9:]) if names else 0

    def worker(self) -> int | None:
        """The living process of rank 0."""
        path = self.folder.path / "logs" / "attempts.jsonl"
        if not path.exists() or not (lines := path.read_text().splitlines()):
            return None
        pid = int(json.loads(lines[-1])["pid"])
        return pid if Path(f"/proc/{pid}").exists() else None


@pytest.fixture
def experiments(tmp_path: Path, teacher_weights: Path) -> Callable[[str, str], Experiment]:
    def build(method: str, name: str) -> Experiment:
        return digits(
            tmp_path,
            name=name,
            data={"name": "digits", "subset": STEPS * 20, "validation": 0.2, "augment": {"crop": 1}},
            teacher=teaching(teacher_weights) | {"source": "live"},
            methods={"ce": {}, method: SMALL.get(method, {})},
            train={"epochs": EPOCHS, "batch_size": 16, "checkpoint": {"steps": 7, "keep": 3}},
            scale={"workers": METHODS[method], "cpus_per_worker": 1, "use_gpu": False, "max_failures": 10},
        )

    return build


def test_twenty_kills_change_no_student(
    nodes: Nodes, tmp_path: Path, experiments: Callable[[str, str], Experiment]
) -> None:
    chance, deaths, began = random.Random(5), Counter[str](), time.monotonic()
    for method in METHODS:
        whole = Run(experiments(method, f"whole-{method}"), nodes.environment)
        whole.start()
        whole.end()
        run = Run(experiments(method, f"killed-{method}"), nodes.environment)
        run.start()
        victims = ["worker", "worker", "driver", "node"]
        chance.shuffle(victims)
        dead: int | None = None
        for number, victim in enumerate(victims):
            target = chance.randrange(number * 40, number * 40 + 35)
            worker = run.until_works(after=target, not_by=dead)
            time.sleep(chance.uniform(0.0, 0.3))
            if victim == "driver":
                run.process.kill()
                run.process.communicate()
            elif victim == "node":
                nodes.kill(worker)
                nodes.add()
            else:
                os.kill(worker, signal.SIGKILL)
            deaths[victim] += 1
            dead = worker
            print(f"{time.monotonic() - began:6.1f} s  {method}: {victim} killed after step {run.step}", flush=True)
            if victim == "driver":
                run.start("--resume")
        run.end()
        student = "student.safetensors"
        assert (run.folder.path / student).read_bytes() == (whole.folder.path / student).read_bytes(), method
        resumed, uninterrupted = ([without_times(record) for record in of.folder.history()] for of in (run, whole))
        assert resumed == uninterrupted
        assert run.folder.succeeded
    assert deaths == {"worker": 10, "driver": 5, "node": 5}


def test_a_run_goes_on_with_fewer_workers_and_with_more(
    nodes: Nodes, experiments: Callable[[str, str], Experiment]
) -> None:
    scale = {"scale.workers": 2, "scale.min_workers": 1, "train.epochs": 100_000, "train.checkpoint.epochs": 100}
    run = Run(experiments("kd", "elastic").override(scale), nodes.environment)
    run.start()
    worker = run.until_works(after=10, not_by=None)
    nodes.kill(worker)
    other = run.until_works(after=run.step, not_by=worker)
    nodes.add()
    run.until_works(after=run.step, not_by=other)
    os.killpg(run.process.pid, signal.SIGINT)
    _, complained = run.process.communicate(timeout=60)
    assert run.process.returncode == 130, complained
    path = run.folder.path / "logs" / "attempts.jsonl"
    attempts = [json.loads(line) for line in path.read_text().splitlines()]
    assert [attempt["workers"] for attempt in attempts] == [2, 1, 2]
    assert 0 == attempts[0]["step"] < attempts[1]["step"] < attempts[2]["step"]
    assert "attempt 2, with 1 worker, goes on from step" in complained


def test_ctrl_c_ends_cleanly_and_the_run_goes_on(tmp_path: Path, experiments: Callable[[str, str], Experiment]) -> None:
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        run = Run(experiments("crd", "stopped"), environment_of(short) | SOON_MISSED)
        run.start()
        worker = run.until(lambda: run.step > 30 and run.worker())
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to the command and all its children
        _, complained = run.process.communicate(timeout=30)
        assert run.process.returncode == 130, complained
        assert complained.splitlines()[-1].endswith("the same command with --resume goes on")
        assert "Traceback" not in complained
        assert not run.folder.succeeded
        deadline = time.monotonic() + 20
        while Path(f"/proc/{worker}").exists():
            assert time.monotonic() < deadline, "the worker lives on"
            time.sleep(0.1)
        left = run.step
        run.start("--resume")
        run.end()
        assert run.folder.attempts()[0] >= left > 30
        assert len(run.folder.history()) == EPOCHS


def test_a_run_that_never_gets_on_ends(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"student": {"model": "tests.training.networks:lethal"}}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short:
        for allowed, attempts, said in ((1, 2, "failed 2 times"), (100, 6, "5 times in a row the workers died")):
            scale = {"max_failures": allowed, "use_gpu": False}
            run = Run(
                digits(tmp_path, name=f"lethal{allowed}", scale=scale, **sections), environment_of(short) | SOON_MISSED
            )
            run.start()
            _, complained = run.process.communicate(timeout=PATIENCE)
            assert run.process.returncode == 1, complained
            assert said in complained and "next checkpoint" in complained
            assert "Traceback" not in complained
            assert run.folder.attempts() == [0] * attempts
            with contextlib.suppress(ProcessLookupError):
                os.killpg(run.process.pid, signal.SIGKILL)
