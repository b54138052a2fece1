"""Tells of a batch that does not come, while it does not: nobody else in the process could."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from raydistill.training.meter import Say

T = TypeVar("T")

PATIENCE_S = 60.0


def stalls_told(batches: Iterable[T], say: Say, place: Callable[[], str], patience: float = PATIENCE_S) -> Iterator[T]:
    """Yield the batches; ``say`` is told of each that takes more than ``patience`` seconds, and when it has come.

    ``place`` says which batch is awaited, and where it comes from.
    """
    with _Watch(say, place, patience) as watch:
        for batch in batches:
            watch.came()
            yield batch
            watch.awaits()


class _Watch:
    """A thread that looks at the clock; a step only sets the time at which its wait began."""

    def __init__(self, say: Say, place: Callable[[], str], patience: float) -> None:
        self._say, self._place, self._patience = say, place, patience
        self._since: float | None = time.monotonic()
        self._told: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="stalls", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def awaits(self) -> None:
        self._since = time.monotonic()

    def came(self) -> None:
        since, self._since = self._since, None
        if since is not None and self._told == since:
            self._say(f"{self._place()} came after {time.monotonic() - since:.0f} s")

    def _look(self) -> None:
        while not self._over.wait(self._patience / 4):
            since = self._since
            if since is not None and since != self._told and time.monotonic() - since > self._patience:
                self._told = since
                self._say(f"{self._place()} has not come for {self._patience:.0f} s")
