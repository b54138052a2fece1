"""Counts the rows that actors have computed while their shards are under way.

Nothing here imports torch: the counter is a process of its own, which is there for nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

SECONDS_BETWEEN_COUNTS = 0.5


class Counter:
    """Adds up what all actors send; an actor itself, which none of them waits for."""

    def __init__(self) -> None:
        """Begin with none."""
        self._rows = 0

    def add(self, rows: int) -> None:
        """Count so many rows more."""
        self._rows += rows

    def rows(self) -> int:
        """Return the rows of all actors."""
        return self._rows


@contextmanager
def counted(tell: Callable[[int], None]) -> Iterator[Any]:
    """Yield a counter for the actors; its count is told a few times a second while they are at work."""
    import ray

    counter = ray.remote(num_cpus=0)(Counter).remote()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(SECONDS_BETWEEN_COUNTS):
            with suppress(ray.exceptions.GetTimeoutError):
                try:
                    tell(ray.get(counter.rows.remote(), timeout=SECONDS_BETWEEN_COUNTS))
                except ray.exceptions.RayError:  # no count is no reason to stop
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield counter
    finally:
        over.set()
        watcher.join()
        ray.kill(counter)
