"""The Ray that a command starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import TESTS

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
