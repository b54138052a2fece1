"""A few steps of the training under torch's profiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from raydistill.files import make_folders, write_atomically
from raydistill.training.session import Session

T = TypeVar("T")

TRACE, TABLE = "trace.pt.trace.json", "profile.txt"
WAIT, WARM_UP, RECORD = 5, 2, 5
OPERATORS = 25


@dataclass(frozen=True)
class Window:
    """Which steps are recorded: the first ones pass, some more warm the profiler up."""

    wait: int
    warm_up: int
    record: int

    @classmethod
    def within(cls, steps: int) -> Window:
        """Return the usual window, or what of it an epoch of so many steps has room for."""
        warm_up = min(WARM_UP, steps - 1)
        record = min(RECORD, steps - warm_up)
        return cls(min(WAIT, steps - warm_up - record), warm_up, record)


class Profiler:
    """Records no step, as in a run that nobody asked to profile."""

    def watch(self, session: Session, steps: Iterator[T], *, start: int) -> Iterator[T]:
        """Yield the steps of an epoch from ``start`` on."""
        return steps


class TorchProfiler(Profiler):
    """Records some steps of the first epoch that it sees, and says so by ``note``; the training goes on unchanged.

    It leaves a trace for Perfetto, Chrome or TensorBoard, and the operators that take most time as a table. Phases of
    the step are labels in both.
    """

    def __init__(self, folder: Path, note: Callable[[str], None]) -> None:
        """Write into ``folder``, once."""
        self._folder, self._note = folder, note
        self._done = False

    def watch(self, session: Session, steps: Iterator[T], *, start: int) -> Iterator[T]:
        """See ``Profiler``."""
        left = session.steps_per_epoch - start
        if self._done or left < 1:
            yield from steps
            return
        self._done = True
        window = Window.within(left)
        with _labelled(session), _profiler(session.device, window) as profiler:
            for number, step in enumerate(steps, 1):
                yield step
                profiler.step()
                if number == window.wait + window.warm_up + window.record:
                    break
        self._write(profiler, session, window, start)
        yield from steps

    def _write(self, profiler: profile, session: Session, window: Window, start: int) -> None:
        """Leave the files; a profile that cannot be written is no reason to stop."""
        first = start + window.wait + window.warm_up + 1
        last = first + window.record - 1
        steps = f"step {first}" if first == last else f"steps {first} to {last}"
        recorded = f"{steps} of epoch {session.epoch + 1}, after {window.warm_up} to warm up"
        device = "cpu" if session.device.type == "cpu" else "device"
        table = profiler.key_averages().table(sort_by=f"self_{device}_time_total", row_limit=OPERATORS)
        try:
            make_folders(self._folder)
            profiler.export_chrome_trace(str(self._folder / TRACE))
            write_atomically(self._folder / TABLE, f"{recorded}; rank {session.rank}, {session.device}\n\n{table}\n")
        except Exception as error:
            self._note(f"the profile could not be written: {error}")
        else:
            self._note(f"profile of {recorded}: {self._folder / TABLE}; trace for Perfetto beside it: {TRACE}")


def _profiler(device: torch.device, window: Window) -> profile:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*won't be using warmup.*")  # an epoch of one step has no room
        plan = schedule(wait=window.wait, warmup=window.warm_up, active=window.record, repeat=1)
    return profile(activities=activities, schedule=plan, acc_events=True)


@contextmanager
def _labelled(session: Session) -> Iterator[None]:
    session.phases.labelled = True
    try:
        yield
    finally:
        session.phases.labelled = False
