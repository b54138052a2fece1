"""A Ray of several nodes on this machine, any of which can be lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent

NODES = """
import os, signal, sys
from pathlib import Path
from ray.cluster_utils import Cluster

cluster, nodes = Cluster(), {}

def add(cpus):
    node = cluster.add_node(
        num_cpus=cpus, node_ip_address="127.0.0.1", include_dashboard=False, object_store_memory=200 * 2**20
    )
    nodes[node.all_processes["raylet"][0].process.pid] = node

def children(pid):
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(path.parent.name)
        except OSError:
            pass

for cpus in (0, 1, 1):
    add(cpus)
print("RAY", cluster.address, flush=True)
for line in sys.stdin:
    if raylet := int(line):
        for pid in [raylet, *children(raylet)]:
            os.kill(pid, signal.SIGKILL)
        cluster.remove_node(nodes.pop(raylet), allow_graceful=False)
    else:
        add(1)
    print("DONE", flush=True)
cluster.shutdown()
"""


@dataclass
class Nodes:
    """A Ray with a head that only drivers use, and two nodes with one CPU each, in processes of their own."""

    process: subprocess.Popen[str]
    environment: dict[str, str]

    def kill(self, worker: int) -> None:
        """End the node that a process works on, with all that runs there."""
        self._ask(parent(worker))

    def add(self) -> None:
        """Start a node."""
        self._ask(0)

    def _ask(self, raylet: int) -> None:
        assert self.process.stdin and self.process.stdout
        print(raylet, file=self.process.stdin, flush=True)
        assert next((line for line in self.process.stdout if line.startswith("DONE")), None)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def environment_of(short: str) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "RAY_TMPDIR": short,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


SOON_MISSED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
}
"""Lets a Ray notice a lost node within seconds."""


@contextlib.contextmanager
def running_ray(program: str, log_folder: Path, **more: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run a program that starts a Ray, says ``RAY <address>`` and ends it with its input; its process and environment.

    The environment has ``more`` and lets commands join that Ray.
    """
    # Sockets have short names; and nobody else on this machine may take this Ray for the one to join.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as short, (log_folder / "ray.log").open("w") as log:
        environment = environment_of(short) | more
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        assert process.stdin and process.stdout
        try:
            line = next((line for line in process.stdout if line.startswith("RAY ")), "")
            assert line, (log_folder / "ray.log").read_text()
            yield process, environment | {"RAY_ADDRESS": line.split()[1]}
        finally:
            process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def running_nodes(log_folder: Path) -> Iterator[Nodes]:
    """Start a Ray of three nodes for the time being."""
    with running_ray(NODES, log_folder, **SOON_MISSED) as (process, environment):
        yield Nodes(process, environment)
