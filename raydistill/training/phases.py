"""Where the time of an epoch goes, told without making a step wait for the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch

from raydistill.methods.collectives import mean_over_ranks

T = TypeVar("T")

DATA, TEACHER, STUDENT, OBJECTIVE = "data", "teacher", "student", "objective"
BACKWARD, OPTIMIZER, CHECKPOINT, VALIDATION = "backward", "optimizer", "checkpoint", "validation"
ALWAYS = (DATA, STUDENT, OBJECTIVE, BACKWARD, OPTIMIZER, CHECKPOINT, VALIDATION)
"""What every epoch tells of; the ``TEACHER`` is told of where one is live."""

MOST_UNREAD = 512
"""So many stretches are noted before those that the device is done with are added up."""


class Phases:
    """Adds up the seconds of each phase; ``with phases(STUDENT): ...`` is a stretch of one.

    Where phases lie within each other, every moment counts for the innermost. On a CPU the host's clock is exact. A GPU
    works behind the host's back, so there stretches lie between events in its stream, which nobody waits for before the
    epoch's end; what the host does while the GPU is busy takes none of the time.

    Attributes:
        labelled: whether a profiler's trace shall show the phases.
    """

    def __init__(self, device: torch.device) -> None:
        """Start with no time at all; ``device`` is that of the training."""
        self._device = device
        self._clock: _Clock = _Events() if device.type == "cuda" else _HostClock()
        self._seconds = dict.fromkeys(ALWAYS, 0.0)
        self._running: list[str] = []
        self._since: Any = None
        self._unread: deque[tuple[str, Any, Any]] = deque()
        self.labelled = False

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what happens within for a phase."""
        with torch.profiler.record_function(phase) if self.labelled else nullcontext():
            self._switch()
            self._running.append(phase)
            try:
                yield
            finally:
                self._switch()
                self._running.pop()

    def each(self, phase: str, values: Iterable[T]) -> Iterator[T]:
        """Yield all values; the wait for each of them counts for a phase."""
        waiting = iter(values)
        while True:
            with self(phase):
                found = list(islice(waiting, 1))
            if not found:
                return
            yield found[0]

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase since ``restart``; this waits for the device."""
        self._read(wait=True)
        return dict(self._seconds)

    def restart(self, before: Mapping[str, float] | None = None) -> None:
        """Begin anew, or where an earlier process was, which said so by ``seconds``."""
        self._read(wait=True)
        self._seconds = dict.fromkeys(ALWAYS, 0.0) | dict(before or {})

    def result(self) -> dict[str, float]:
        """Return ``time/<phase>`` of this epoch, the mean over all ranks, and begin anew. The ranks meet."""
        found = self.seconds()
        self.restart()
        means = mean_over_ranks(torch.tensor(list(found.values()), dtype=torch.float64, device=self._device))
        return {f"time/{phase}": value for phase, value in zip(found, means.tolist(), strict=True)}

    def _switch(self) -> None:
        """End the stretch of the innermost phase that runs, and begin the next one."""
        now = self._clock.now()
        if self._running:
            self._unread.append((self._running[-1], self._since, now))
        self._since = now
        if len(self._unread) > MOST_UNREAD:
            self._read(wait=False)

    def _read(self, *, wait: bool) -> None:
        """Add up what the device is done with, or all."""
        while self._unread:
            phase, began, ended = self._unread[0]
            if not self._clock.passed(ended, wait=wait):
                return
            self._unread.popleft()
            self._seconds[phase] = self._seconds.get(phase, 0.0) + self._clock.between(began, ended)


class _Clock(Protocol):
    """Tells moments, and the time between two of them once they have passed."""

    def now(self) -> Any: ...

    def passed(self, moment: Any, *, wait: bool) -> bool: ...

    def between(self, began: Any, ended: Any) -> float: ...


class _HostClock:
    """Moments of this process."""

    def now(self) -> float:
        return time.perf_counter()

    def passed(self, moment: float, *, wait: bool) -> bool:
        return True

    def between(self, began: float, ended: float) -> float:
        return ended - began


class _Events:
    """Moments of a GPU: events in its stream."""

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def passed(self, moment: torch.cuda.Event, *, wait: bool) -> bool:
        if wait:
            moment.synchronize()
        return wait or bool(moment.query())  # type: ignore[no-untyped-call]

    def between(self, began: torch.cuda.Event, ended: torch.cuda.Event) -> float:
        return float(began.elapsed_time(ended)) / 1000.0  # type: ignore[no-untyped-call]
