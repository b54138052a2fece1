"""What a sweep may spend, and what it has spent."""

from __future__ import annotations

import time

from raydistill.tune_config import BudgetConfig


class Budget:
    """Epochs and GPU hours of all trials together, and hours of the clock. Finalists are not counted."""

    def __init__(self, config: BudgetConfig, *, gpus_per_trial: float, hours_before: float = 0.0) -> None:
        """Start the clock, which has shown ``hours_before`` already where a sweep goes on."""
        self._config, self._gpus = config, gpus_per_trial
        self._epochs: dict[int, int] = {}
        self._seconds: dict[int, float] = {}
        self._began = time.monotonic() - 3600.0 * hours_before

    def note(self, number: int, epoch: int, seconds: float) -> None:
        """A trial has come so far, in so many seconds of training."""
        self._epochs[number], self._seconds[number] = epoch, seconds

    @property
    def epochs(self) -> int:
        """Epochs of all trials."""
        return sum(self._epochs.values())

    @property
    def hours(self) -> float:
        """Hours of the clock."""
        return (time.monotonic() - self._began) / 3600.0

    @property
    def gpu_hours(self) -> float:
        """Hours of all trials, times the GPUs that each has."""
        return sum(self._seconds.values()) * self._gpus / 3600.0

    @property
    def is_spent(self) -> bool:
        """Whether one of the limits is reached."""
        return any(
            limit is not None and spent >= limit
            for spent, limit in (
                (self.epochs, self._config.epochs),
                (self.hours, self._config.hours),
                (self.gpu_hours, self._config.gpu_hours),
            )
        )
