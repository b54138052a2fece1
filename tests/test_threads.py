from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from raydistill.threads import thread_beside, threads_given

TEAMS = """
import os, torch
from raydistill.threads import thread_beside

def threads():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(2)
large = torch.ones(1 << 20)
torch.isfinite(large)
before = threads()
with thread_beside("checkpoint") as pool:
    pool.submit(torch.isfinite, large).result()
    torch.isfinite(large)
    print(threads() - before, torch.get_num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted there")
def test_a_thread_beside_the_training_has_no_team_of_its_own() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    found = subprocess.run([sys.executable, "-c", TEAMS], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "2"]


def test_beside_the_training_it_is_known_how_many_threads_that_has() -> None:
    given = torch.get_num_threads()
    torch.set_num_threads(given + 1)
    try:
        with thread_beside("ahead") as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
            assert pool.submit(threads_given).result() == given + 1
        assert torch.get_num_threads() == given + 1
    finally:
        torch.set_num_threads(given)
