"""CPUs of workers and of the tasks that read ahead."""

from __future__ import annotations

import pytest

from raydistill.training.cpus import cpus_each, spare_cpus


@pytest.mark.parametrize(
    ("nodes", "workers", "use_gpu", "cpus"),
    [
        ([(16, 0)], 3, False, 5),
        ([(1, 0)], 4, False, 1),
        ([(1, 0), (1, 0), (1, 0)], 1, False, 1),
        ([(16, 0), (16, 0)], 3, False, 8),
        ([(0, 0), (32, 1), (8, 4)], 2, True, 8),
    ],
)
def test_a_worker_gets_no_more_cpus_than_a_node_has(
    nodes: list[tuple[int, int]], workers: int, use_gpu: bool, cpus: int
) -> None:
    assert cpus_each(nodes, workers, use_gpu=use_gpu) == cpus


@pytest.mark.parametrize(("cpus", "left"), [(1, 0), (2, 1), (4, 1), (16, 4)])
def test_readers_get_a_share_of_the_cpus(cpus: int, left: int) -> None:
    assert spare_cpus(True, cpus) == left
    assert spare_cpus(False, cpus) == 0
