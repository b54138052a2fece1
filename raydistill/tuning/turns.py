"""Whose report is judged next: a pure function of what the trials report, not of how fast they do. No Ray here.

Every trial is taken to need one unit of time for an epoch, and every slot to begin its next trial when one ends. In
that time all reports have an order, the same on any machine and after any interruption, and they are judged in it: one
that comes early waits until all that come before it are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class _Running:
    began: int
    judged: int = 0
    arrived: int | None = None


class Turns:
    """Trials by their numbers. ``stops`` are the epochs at which reports are judged; the last one is the longest end.

    ``more`` tells whether another trial will begin once a slot is free; what comes later waits for it.
    """

    def __init__(self, stops: Sequence[int], slots: int, more: Callable[[], bool]) -> None:
        """Begin with all slots free."""
        self._stops, self._free, self._more = tuple(stops), slots, more
        self._clock = 0
        self._running: dict[int, _Running] = {}

    def begin(self, number: int) -> None:
        """A trial takes a free slot."""
        self._free -= 1
        self._running[number] = _Running(began=self._clock)

    def matters(self, number: int, epoch: int, *, final: bool) -> bool:
        """Whether a report is to be judged: at a stop, or a trial's last one; what was judged before is not again."""
        running = self._running[number]
        return epoch > running.judged and (final or epoch in self._stops)

    def arrive(self, number: int, epoch: int) -> None:
        """A trial reports an epoch and waits for the verdict."""
        self._running[number].arrived = epoch

    def withdraw(self, number: int) -> None:
        """A trial is gone before its report was judged, and will come to that epoch again."""
        self._running[number].arrived = None

    def due(self) -> int | None:
        """The trial whose report is judged now; None where it has not come yet, or another trial is to begin first."""
        if not self._running or (self._free > 0 and self._more()):
            return None
        number = self.awaited()
        return number if self._running[number].arrived is not None else None

    def awaited(self) -> int:
        """The trial whose report is the next one to be judged."""
        return min(self._running, key=lambda number: (self._time(number), number))

    def judge(self, number: int, *, ended: bool) -> None:
        """Say how the report that was due was judged."""
        self._clock = max(self._clock, self._time(number))
        if ended:
            self.leave(number)
            return
        running = self._running[number]
        assert running.arrived is not None
        running.judged, running.arrived = running.arrived, None

    def postpone(self, number: int) -> None:
        """Let all others go first from now on."""
        self._running[number].began = max(running.began for running in self._running.values()) + self._stops[-1]

    def leave(self, number: int) -> None:
        """A trial gives its slot back; one that has done so already does not again."""
        if self._running.pop(number, None) is not None:
            self._free += 1

    def _time(self, number: int) -> int:
        running = self._running[number]
        return running.began + next(stop for stop in self._stops if stop > running.judged)


class AsTheyCome(Turns):
    """Judges whatever has arrived."""

    def due(self) -> int | None:
        """See ``Turns``."""
        return next((number for number, running in self._running.items() if running.arrived is not None), None)
