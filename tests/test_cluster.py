"""The Ray that a command starts."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raydistill import cluster, raylet
from raydistill.errors import ConfigError, RunError
from tests.commands import PATIENCE
from tests.conftest import TESTS, digits
from tests.nodes import Nodes
from tests.training.test_kills import Run

STARTED = """
{first}
from raydistill.cluster import ensure_ray
ensure_ray(num_cpus=1)
import ray
print(*[node["NodeManagerAddress"] for node in ray.nodes()], ray.get_runtime_context().gcs_address.partition(":")[0])
"""


@pytest.mark.parametrize("first", ["", "import ray"])
def test_nobody_else_reaches_it(first: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", STARTED.format(first=first)],
        env=environment | {"PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == {"127.0.0.1"}


def test_a_worker_that_outlives_its_raylet_ends_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    worker = "import time; print(flush=True); time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as of_raylet:
        assert of_raylet.stdout is not None
        of_raylet.stdout.readline()
        outliving = os.pidfd_open(child(of_raylet.pid, "sleep"))
        monkeypatch.setattr(raylet, "_raylet", lambda: of_raylet.pid)
        monkeypatch.setattr(raylet, "_LEAVE_S", 0.2)
        monkeypatch.setattr(ray, "shutdown", of_raylet.kill)
        raylet._end_ray()
        ended = select.poll()
        ended.register(outliving, select.POLLIN)
        assert ended.poll(10_000)
    os.close(outliving)


@pytest.mark.slow
def test_the_death_of_its_raylet_or_of_an_agent_is_told_in_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    experiment = digits(tmp_path, train={"epochs": 6, "batch_size": 16, "checkpoint": {"steps": 5}})
    run = Run(experiment, {name: value for name, value in os.environ.items() if not name.startswith("RAY_")})
    run.start()
    worker = None
    for lost in ("raylet", "agent"):
        worker = run.until_works(after=run.step, not_by=worker)
        victim = child(run.process.pid, "raylet")
        os.kill(victim if lost == "raylet" else child(victim, "RuntimeEnvAgent"), signal.SIGKILL)
        _, said = run.process.communicate(timeout=PATIENCE)
        assert run.process.returncode == 1
        assert said.splitlines()[-1].startswith("raydistill: Ray was lost: its raylet"), said
        assert "Traceback" not in said
        outlived = time.monotonic() + PATIENCE
        while run.worker():  # it may save once more before it notices
            assert time.monotonic() < outlived, "a worker without its Ray goes on"
        step = run.step
        run.start("--resume")
    run.end()
    assert run.folder.attempts()[-1] >= step, "it began anew"


def child(pid: int, name: str) -> int:
    """A process that another one started."""
    asked = ["pgrep", "-f", "-P", str(pid), name]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def test_a_ray_that_does_not_come_up_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nSome of the raylet failed.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=r"^Ray could not be started: The current .* raylet failed\. Its logs .*$"):
        cluster.ensure_ray()


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "head:", "10.0.0.5:port"])
def test_what_no_process_can_join_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with pytest.raises(ConfigError, match=r"--address = .*(raydistill submit|host:port)"):
        cluster.join(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"^RAY_ADDRESS = "):
        cluster.ensure_ray()


@pytest.mark.parametrize("address", ["10.0.0.5:6379", "head.lab:6379", "[fe80::1]:6379"])
def test_an_address_is_joined_by_this_process_and_what_it_starts(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    cluster.join(address)
    assert os.environ["RAY_ADDRESS"] == address
    assert cluster.joins_another()


def test_auto_is_the_ray_that_was_started_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match="no Ray runs on this machine"):
        cluster.ensure_ray()
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.5:6379\n")
    assert cluster._address_to_join() == os.environ["RAY_ADDRESS"] == "10.0.0.5:6379"


GROWS = """
from raydistill import cluster, raylet
cluster.ensure_ray()
cluster.most_resources = lambda: {"CPU": 3.0}
cluster.await_room({"CPU": 1, "GPU": 0}, 2)
cluster.await_room({"CPU": 1}, 4)
print("ASKS", flush=True)
cluster.await_room({"CPU": 1}, 3)
import ray
print(ray.cluster_resources()["CPU"], flush=True)
"""


@pytest.mark.slow
def test_a_cluster_that_can_grow_is_waited_for(nodes: Nodes) -> None:
    """Not where there is room, nor where it can never be; the cloud that brings a node is the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", GROWS], env=nodes.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert next((line for line in process.stdout if "ASKS" in line), None)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(3)
    nodes.add()
    said, wrong = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said.split()) == (0, ["3.0"]), wrong
