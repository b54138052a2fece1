"""Means over an epoch, looked at only now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from raydistill.errors import RunError
from raydistill.methods.collectives import mean_over_ranks

Metrics = dict[str, float]
Progress = Callable[[Mapping[str, Any]], None]

PROGRESS_EVERY_S = 0.5


class Meter:
    """Adds up terms on the device and looks at them only now and then, so that steps do not wait for it."""

    def __init__(self, progress: Progress, epoch: int, steps: int, batch_size: int) -> None:
        """Report to ``progress`` about twice a second."""
        self._progress, self._epoch, self._steps, self._batch_size = progress, epoch, steps, batch_size
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._started = self._shown = time.monotonic()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count one step."""
        for name, value in terms.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._count += 1
        now = time.monotonic()
        if self._count == 1 or now - self._shown > PROGRESS_EVERY_S:
            self._shown = now
            rate = self._count * self._batch_size / max(now - self._started, 1e-9)
            self._progress(
                {"epoch": self._epoch, "step": self._count, "steps": self._steps, "images_per_s": rate}
                | {f"train/{name}": float(value) / self._count for name, value in self._sums.items()}
            )

    def result(self, where: str = "", remedy: str = "train.optimizer.lr or the term's weight") -> Metrics:
        """Return means over the epoch and all ranks.

        Raises ``RunError`` where a term is not finite; it begins with ``where`` and says to lower ``remedy``.
        """
        means = {name: float(mean_over_ranks(value / self._count)) for name, value in self._sums.items()}
        broken = [name for name, value in means.items() if not abs(value) < float("inf")]
        if broken:
            named = [name for name in broken if name != "loss"] or broken
            raise RunError(
                f"{where}epoch {self._epoch + 1}: {', '.join(named)} became NaN or infinite; the checkpoint of the "
                f"epoch before is kept. Lower {remedy}, or set train.clip"
            )
        return {f"train/{name}": value for name, value in means.items()}
