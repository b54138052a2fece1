"""How many of Ray's CPUs each worker gets, and how many are left to the tasks that read ahead for it."""

from __future__ import annotations

from collections.abc import Sequence

READERS_SHARE = 0.25
"""Of Ray's CPUs that workers leave to tasks that read ahead, where there are such; at least one, if they have two."""


def spare_cpus(reads_ahead: bool, available: float) -> int:
    """Return how many of Ray's CPUs are left to the tasks that read ahead; of one alone none can be."""
    return max(0, min(int(available) - 1, max(1, int(READERS_SHARE * available)))) if reads_ahead else 0


def cpus_each(nodes: Sequence[tuple[int, int]], workers: int, *, use_gpu: bool) -> int:
    """Return the most CPUs that each of so many workers can have, at least 1; a worker lies on one node.

    Args:
        nodes: CPUs and GPUs of each.
        workers: how many there are to be.
        use_gpu: whether each takes a GPU too.
    """

    def room(cpus: int) -> int:
        return sum(min(there // cpus, gpus) if use_gpu else there // cpus for there, gpus in nodes)

    most = max((there for there, _ in nodes), default=1)
    return next((cpus for cpus in range(most, 0, -1) if room(cpus) >= workers), 1)
