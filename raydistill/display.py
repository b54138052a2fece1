"""What a user sees while something long runs; all of it on stderr.

At a terminal that is a line that is redrawn; elsewhere, as in the log of continuous integration, whole lines that come
now and then. To who wants it quiet (``raydistill/manner.py``) nothing of it is shown but what ``say`` says.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from raydistill.evaluation.collapse import collapse_warnings
from raydistill.manner import is_quiet
from raydistill.measures import measure_behind, neighbours_of
from raydistill.progress import Progress as Told

if TYPE_CHECKING:
    from raydistill.config import Experiment
    from raydistill.training.run_folder import RunFolder

console = Console(stderr=True, highlight=False)

_PACE_SECONDS = 30.0
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_STEPS = 60.0
"""Of lines about what has lines of its own when a part of it is over: an epoch may take an hour, a run hundreds."""


def say(text: str) -> None:
    """Print one line that the user has to know: a warning, or what asks for something to be done."""
    console.print(text, markup=False, soft_wrap=True)


def tell(text: str) -> None:
    """Print one line on how the work gets on, unless the user wants it quiet."""
    if not is_quiet():
        say(text)


def redraws() -> bool:
    """Whether lines can be drawn anew: at a terminal, not in a log, though that may take colours."""
    watched = console.is_terminal and not console.is_dumb_terminal and console.file.isatty()
    return watched and not is_quiet() and not os.environ.get("CI")


class Log:
    """Lines that stand for what would be redrawn at a terminal, one of them now and then."""

    def __init__(self, seconds: float = _SECONDS_BETWEEN_STEPS) -> None:
        """Begin, so that the first line comes after so many seconds."""
        self._seconds, self._told = seconds, time.monotonic()

    def tell(self, line: str) -> None:
        """Tell a line if it is time and there is no terminal."""
        if not redraws() and time.monotonic() - self._told > self._seconds:
            self.wait()
            tell(line)

    def wait(self) -> None:
        """Let the time begin anew, as something else has been told."""
        self._told = time.monotonic()


@contextmanager
def redrawn(first: str) -> Iterator[Callable[[RenderableType], None]]:
    """Give a function that draws something in the place of what it drew before; it goes at the end.

    A log gets nothing of it: wrong input, which is found out later, is to be told in a single line.
    """
    if not redraws():
        yield lambda drawn: None
        return
    with Live(Text(first), console=console, refresh_per_second=4, transient=True) as live:
        yield live.update


@contextmanager
def training(experiment: Experiment, epochs: int) -> Iterator[Callable[[RunFolder], None]]:
    """Show a training run: a line that is redrawn at a terminal, and one line for each finished epoch everywhere."""
    shown = shown_of_stages = warned = noticed = 0
    phase: str | None = None
    begun, log = (0.0, 0.0), Log()
    with redrawn(f"{experiment.name}: starting Ray and the workers ...") as draw:

        def watch(folder: RunFolder) -> None:
            nonlocal shown, shown_of_stages, warned, noticed, phase, begun
            noticed = say_notices(experiment, folder, noticed)
            records = folder.pretraining()
            for record in records[shown_of_stages:]:
                tell(f"{experiment.name}: stage {record['stage']}, epoch {record['epoch']}  {_terms(record)}")
            history = folder.history()
            for record in history[shown:]:
                tell(f"{experiment.name}: {_epoch_line(record, epochs)}")
            if len(records) + len(history) > shown_of_stages + shown:
                log.wait()
            shown_of_stages, shown = len(records), len(history)
            warnings = collapse_warnings(history)
            for warning in warnings[warned:]:
                say(f"{experiment.name}: warning: {warning}")
            warned = len(warnings)
            progress = folder.progress()
            if progress and shown < epochs:
                total = progress.get("epochs", epochs)
                now = (time.monotonic(), (progress["epoch"] + progress["step"] / progress["steps"]) / total)
                if phase != progress.get("stage", ""):  # the time left is that of the stage, then of the epochs
                    phase, begun = progress.get("stage", ""), now
                line = f"{experiment.name}: {_live_line(progress, total)}{_time_left(begun, now)}"
                draw(Text(line))
                log.tell(line)

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


def _live_line(progress: Mapping[str, Any], epochs: int) -> str:
    stage = f"stage {progress['stage']}, " if "stage" in progress else ""
    return (
        f"{stage}epoch {progress['epoch'] + 1:.0f}/{epochs}  step {progress['step']:.0f}/{progress['steps']:.0f}  "
        f"{_terms(progress)}  {progress['images_per_s']:.0f} images/s"
    )


def _time_left(begun: tuple[float, float], now: tuple[float, float]) -> str:
    """Say the time left from two pairs of a time in seconds and the share that was done by then.

    The first is the earliest step that was seen: neither the start of Ray nor the epochs before a resume count.
    """
    seconds, done = now[0] - begun[0], now[1] - begun[1]
    return f"  {duration(seconds * (1 - now[1]) / done)} left" if done > 0 else ""


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
    pace, log = Pace(), Log(_SECONDS_BETWEEN_LINES)
    with _bar(title) as draw:

        def watch(done: int, total: int) -> None:
            pace.see(done, time.monotonic())
            line = pace.line(done, total)
            draw(done / total if total else None, line)
            if pace.rate is not None:
                log.tell(f"{title}: {line}")

        yield watch


@contextmanager
def working(title: str) -> Iterator[Told]:
    """Show how far some work is, and the time left as far as what is done tells it.

    At a terminal that is a bar; elsewhere a line every ten seconds, also while nothing new is told; but none before the
    first step, as input that is wrong is to be told in a single line.
    """
    work, over, log = _Work(), threading.Event(), console.file

    def tell_now_and_then() -> None:
        while not over.wait(_SECONDS_BETWEEN_LINES):
            if work.has_begun:
                print(f"{title}: {work.line()}", file=log, flush=True)  # also while exporters' own words are swallowed

    def watch(share: float, next_step: str) -> None:
        work.see(share, next_step)
        draw(share or None, work.line())

    with _bar(title) as draw:
        thread = threading.Thread(target=tell_now_and_then, daemon=True)
        if not redraws() and not is_quiet():
            thread.start()
        try:
            yield watch
        finally:
            over.set()
            if thread.is_alive():
                thread.join()


class _Work:
    """How far some work is."""

    def __init__(self) -> None:
        self._began, self._share, self._step = time.monotonic(), 0.0, ""
        self.has_begun = False

    def see(self, share: float, next_step: str) -> None:
        self._share, self._step, self.has_begun = min(1.0, max(0.0, share)), next_step, True

    def line(self) -> str:
        """Say what is being done, how much is, and the time left if everything went on as so far."""
        elapsed = time.monotonic() - self._began
        share = f"{self._share:.0%} " if self._share else ""
        parts = [*filter(None, [self._step]), f"{share}after {duration(elapsed)}"]
        if 0.0 < self._share < 1.0:
            parts.append(f"about {duration(elapsed * (1.0 - self._share) / self._share)} left")
        return ", ".join(parts)


@contextmanager
def _bar(title: str) -> Iterator[Callable[[float | None, str], None]]:
    """Give a function that draws a share of a bar and a line beside it; None is a share that nobody knows."""
    if not redraws():
        yield lambda share, line: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(title, total=None, line="")
        yield lambda share, line: bars.update(task, completed=share or 0, total=share and 1.0, line=line)
