"""Workers that are started before a run knows its data: taken where they fit, ended where they do not."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from raydistill.errors import RaydistillError
from raydistill.training.early import EarlyWorker, EarlyWorkers
from raydistill.training.trainer import train
from tests.conftest import digits

pytestmark = pytest.mark.usefixtures("ray_session")

SOON = 30.0


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All actors that are started early."""
    actors: list[Any] = []
    start = EarlyWorkers.start

    def noted(self: EarlyWorkers, count: int, each: Mapping[str, float]) -> None:
        start(self, count, each)
        actors.extend(self._actors)

    monkeypatch.setattr(EarlyWorkers, "start", noted)
    return actors


def worker_of(run: Path) -> int:
    return int(json.loads((run / "logs" / "startup.json").read_text())["pid"])


def assert_all_cpus_free() -> None:
    deadline = time.monotonic() + SOON
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_they_can_be_asked_for_all_that_ray_trains_workers_can() -> None:
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    def asked(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert asked(EarlyWorker) == asked(RayTrainWorker)


def test_a_run_takes_them(tmp_path: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    take = EarlyWorkers.take

    def asked(self: EarlyWorkers) -> tuple[Any, list[Any]]:
        pids.extend(described.pid for described in ray.get([actor.get_metadata.remote() for actor in self._actors]))
        return take(self)

    monkeypatch.setattr(EarlyWorkers, "take", asked)
    train(digits(tmp_path))
    assert len(started) == 1
    assert worker_of(tmp_path / "runs" / "digits") in pids
    assert_all_cpus_free()


def test_a_run_that_needs_others_ends_them_first(
    tmp_path: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = EarlyWorkers.start
    monkeypatch.setattr(EarlyWorkers, "start", lambda self, count, each: start(self, count, {"CPU": 1, "GPU": 0}))
    train(digits(tmp_path))
    assert len(started) == 1
    with pytest.raises(ray.exceptions.RayError):
        ray.get(started[0].get_metadata.remote())
    assert_all_cpus_free()


def test_a_run_that_cannot_begin_leaves_none(tmp_path: Path, started: list[Any]) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no weights")
    experiment = digits(tmp_path, student={"model": "resnet8", "weights": str(damaged)})
    with pytest.raises(RaydistillError, match=r"damaged\.safetensors"):
        train(experiment)
    assert len(started) == 1
    assert_all_cpus_free()
