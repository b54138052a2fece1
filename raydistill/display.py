"""What a user sees while something long runs; all of it on stderr."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from raydistill.evaluation.collapse import collapse_warnings
from raydistill.measures import measure_behind, neighbours_of

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.training.run_folder import RunFolder

console = Console(stderr=True, highlight=False)

_PACE_SECONDS = 30.0
_SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Print one line for the user."""
    console.print(text, markup=False, soft_wrap=True)


@contextmanager
def training(experiment: Experiment, epochs: int) -> Iterator[Callable[[RunFolder], None]]:
    """Show a training run: a live line at a terminal, and one line for each finished epoch everywhere."""
    shown = shown_of_stages = warned = noticed = 0
    phase, started = "", time.monotonic()
    line = Text(f"{experiment.name}: starting Ray and the workers ...")
    with Live(line, console=console, refresh_per_second=4, transient=True) as live:

        def watch(folder: RunFolder) -> None:
            nonlocal shown, shown_of_stages, warned, noticed, phase, started
            noticed = say_notices(experiment, folder, noticed)
            records = folder.pretraining()
            for record in records[shown_of_stages:]:
                say(f"{experiment.name}: stage {record['stage']}, epoch {record['epoch']}  {_terms(record)}")
            shown_of_stages = len(records)
            history = folder.history()
            for record in history[shown:]:
                say(f"{experiment.name}: {_epoch_line(record, epochs)}")
            shown = len(history)
            warnings = collapse_warnings(history)
            for warning in warnings[warned:]:
                say(f"{experiment.name}: warning: {warning}")
            warned = len(warnings)
            progress = folder.progress()
            if progress and shown < epochs:
                if phase != progress.get("stage", ""):  # the time left is that of the stage, then of the epochs
                    phase, started = progress.get("stage", ""), time.monotonic()
                live.update(Text(f"{experiment.name}: {_live_line(progress, epochs, started)}"))

        yield watch


def say_notices(experiment: Experiment, folder: RunFolder, said: int) -> int:
    """Say the notices of a run beyond the first ``said`` ones; return how many have been said now."""
    notices = folder.notices()
    for notice in notices[said:]:
        say(f"{experiment.name}: {notice}")
    return len(notices)


def _epoch_line(record: Mapping[str, float], epochs: int) -> str:
    top1 = f"  val top-1 {record['val/top1']:.2f} %" if "val/top1" in record else ""
    rank = f"  rank {record['val/rank']:.1f}" if "val/rank" in record else ""
    agreement = "".join(_agreement(name, value) for name, value in record.items())
    speed = f"{record['images_per_s']:.0f} images/s"
    return f"epoch {record['epoch']:.0f}/{epochs}  {_terms(record)}{top1}{rank}{agreement}  {speed}"


def _agreement(metric: str, value: float) -> str:
    """Return ``neighbours@10 23.4 %`` or ``cka 0.712`` for such a metric, nothing for others."""
    measure = measure_behind(metric)
    if measure is None:
        return ""
    return f"  {measure} {value:.3f}" if neighbours_of(measure) is None else f"  {measure} {value:.1f} %"


def _terms(values: Mapping[str, float]) -> str:
    """Return ``loss 1.234 (kd 0.5, ce 0.7)`` without the details of single methods."""
    terms = {name.removeprefix("train/"): value for name, value in values.items() if name.startswith("train/")}
    total = terms.pop("loss", float("nan"))
    parts = ", ".join(f"{name} {value:.3f}" for name, value in terms.items() if "/" not in name)
    return f"loss {total:.3f} ({parts})" if parts else f"loss {total:.3f}"


def _live_line(progress: Mapping[str, Any], epochs: int, started: float) -> str:
    stage = f"stage {progress['stage']}, " if "stage" in progress else ""
    epochs = progress.get("epochs", epochs)
    done = (progress["epoch"] + progress["step"] / progress["steps"]) / epochs
    elapsed = time.monotonic() - started
    left = elapsed * (1 - done) / done if done > 0 else float("nan")
    return (
        f"{stage}epoch {progress['epoch'] + 1:.0f}/{epochs}  step {progress['step']:.0f}/{progress['steps']:.0f}  "
        f"{_terms(progress)}  {progress['images_per_s']:.0f} images/s  {left:.0f} s left"
    )


class Pace:
    """Images a second over the last half minute, and the time left.

    Only what was computed while being watched counts: neither rows that were there before, nor the start of Ray and
    its actors, which ends with the first row.
    """

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._seen: deque[tuple[float, int]] = deque()
        self._before: int | None = None

    def see(self, done: int, now: float) -> None:
        """Note the rows that are done at a time in seconds; fewer than before mean that another cache has begun."""
        if self._before is None or done < self._before or (self._seen and done < self._seen[-1][1]):
            self._before = done
            self._seen.clear()
        if done == (self._seen[-1][1] if self._seen else self._before):
            return
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _PACE_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Images a second, or None as long as nobody can tell."""
        (began, first), (ended, last) = (self._seen[0], self._seen[-1]) if self._seen else ((0.0, 0), (0.0, 0))
        return (last - first) / (ended - began) if ended > began else None

    def line(self, done: int, total: int) -> str:
        """Say rows, images a second and the time left."""
        rate = self.rate
        pace = "" if rate is None else f"  {rate:.0f} images/s  {duration((total - done) / rate)} left"
        return f"{done}/{total} rows{pace}"


def duration(seconds: float) -> str:
    """Return ``1 h 02 min``, ``3 min 20 s`` or ``5 s``."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextmanager
def rows(title: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many rows of a cache are done, with images/s and the time left.

    At a terminal that is a bar; elsewhere a line every ten seconds while rows are computed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn())
    pace, said = Pace(), time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None, line="")

        def watch(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            pace.see(done, now)
            line = pace.line(done, total)
            progress.update(task, completed=done, total=total, line=line)
            if not console.is_terminal and pace.rate is not None and now - said > _SECONDS_BETWEEN_LINES:
                said = now
                say(f"{title}: {line}")

        yield watch
