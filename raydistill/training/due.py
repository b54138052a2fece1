"""When a checkpoint is due, decided alike by all ranks without making them meet at every step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from raydistill.methods.collectives import world_size
from raydistill.train_config import CheckpointConfig

SECONDS_PER_MINUTE = 60.0


class Due:
    """Counts steps and minutes since the last checkpoint.

    Clocks of several ranks differ, and all must stop at the same step. So they take rank 0's time per step to tell
    after how many steps the minutes will have gone by, and ask for it anew after 1, 2, 4, 8, ... steps.
    """

    def __init__(
        self, config: CheckpointConfig, device: torch.device, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to count now; ``device`` is where ranks exchange, ``clock`` gives seconds."""
        self._steps, self._device, self._clock = config.steps, device, clock
        self._seconds = None if config.minutes is None else config.minutes * SECONDS_PER_MINUTE
        self.restart()

    def restart(self) -> None:
        """Begin to count anew."""
        self._done, self._expected, self._began = 0, math.inf, self._clock()

    def after_step(self) -> bool:
        """Count a step; return whether enough of them, or of minutes, have gone by."""
        self._done += 1
        by_steps = self._steps is not None and self._done >= self._steps
        return by_steps or (self._seconds is not None and self._minutes_are_over(self._seconds))

    def _minutes_are_over(self, seconds: float) -> bool:
        gone = self._clock() - self._began
        if world_size() == 1:
            return gone >= seconds
        if self._done.bit_count() == 1:
            per_step = torch.tensor(gone / self._done, dtype=torch.float64, device=self._device)
            torch.distributed.broadcast(per_step, src=0)
            self._expected = seconds / max(float(per_step), 1e-9)
        return self._done >= self._expected
