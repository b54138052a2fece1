"""Means over an epoch, looked at only now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from raydistill.methods.collectives import gather_rows, mean_over_ranks, rank, world_size

Metrics = dict[str, float]
Progress = Callable[[Mapping[str, Any]], None]
Say = Callable[[str], None]

PROGRESS_EVERY_S = 0.5


def silent(text: str) -> None:
    """Say nothing."""


class Meter:
    """Adds up terms on the device and looks at them only now and then, so that steps do not wait for it.

    Attributes:
        count: steps that are done of the epoch.
    """

    def __init__(
        self, progress: Progress, epoch: int, steps: int, batch_size: int, under_way: Mapping[str, Any] | None = None
    ) -> None:
        """Report to ``progress`` about twice a second; go on from what ``state`` said, where that is given."""
        self._progress, self._epoch, self._steps, self._batch_size = progress, epoch, steps, batch_size
        before = under_way or {"step": 0, "seconds": 0.0, "sums": {}}
        self.count = self._first = int(before["step"])
        self._seconds_before = float(before["seconds"])
        self._sums = {name: _own(values) for name, values in before["sums"].items()}
        self._started, self._shown = time.monotonic(), -math.inf

    @property
    def full(self) -> bool:
        """Whether all steps of the epoch are done."""
        return self.count >= self._steps

    @property
    def seconds(self) -> float:
        """Time since the epoch began, without that between a checkpoint and the start from it."""
        return self._seconds_before + time.monotonic() - self._started

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count one step."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self.count += 1
        now = time.monotonic()
        if now - self._shown > PROGRESS_EVERY_S:
            self._shown = now
            rate = (self.count - self._first) * self._batch_size / max(now - self._started, 1e-9)
            self._progress(
                {"epoch": self._epoch, "step": self.count, "steps": self._steps, "images_per_s": rate}
                | {f"train/{name}": float(value) / self.count for name, value in self._sums.items()}
            )

    def state(self) -> dict[str, Any]:
        """Where the epoch stands: ``step``, ``seconds``, and ``sums`` with one row for each rank. The ranks meet."""
        sums = {name: gather_rows(value.reshape(1)) for name, value in self._sums.items()}
        return {"step": self.count, "seconds": self.seconds, "sums": sums}

    def result(self) -> Metrics:
        """Return means over the epoch and all ranks."""
        return {f"train/{name}": float(mean_over_ranks(value / self.count)) for name, value in self._sums.items()}


def _own(sums: Tensor) -> Tensor:
    """This rank's part of sums [W]; of another number of ranks than there were, an equal part."""
    return sums[rank()].clone() if len(sums) == world_size() else sums.mean()
