"""Threads that work beside the one that trains."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from raydistill.lazy import torch

_beside = threading.local()


def thread_beside(name: str) -> ThreadPoolExecutor:
    """Return a thread whose operations on tensors stay within it; one that trains calls this, no thread beside it.

    By itself OpenMP gives every thread that computes a team of its own, for good. Once all teams together have more
    threads than there are CPUs, none of them waits actively for its work any more: training was slower by a sixth from
    the first checkpoint on.

    Args:
        name: what the thread's name begins with.
    """
    given = threads_given()
    pool = ThreadPoolExecutor(1, thread_name_prefix=name)
    pool.submit(_stay_alone, given).result()
    torch.set_num_threads(given)  # again for those that will yet compute for the first time
    return pool


def threads_given() -> int:
    """Return how many threads the one that trains may use; asked beside it, too."""
    return getattr(_beside, "given", None) or torch.get_num_threads()


def _stay_alone(given: int) -> None:
    _beside.given = given
    torch.get_num_threads()  # lets torch set it for this thread now, not when it first computes
    torch.set_num_threads(1)
