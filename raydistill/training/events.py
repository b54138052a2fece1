"""TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class EventLog:
    """Writes scalars for TensorBoard; its library is imported at the first write, after the training has started."""

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        """Events go into ``folder`` itself; without ``enabled`` nothing is written."""
        self._folder, self._enabled = folder, enabled
        self._writer: Any = None

    def __enter__(self) -> EventLog:
        """Nothing is opened yet."""
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Write one epoch's metrics under its number; those of a stage under its name, as ``stage/<name>/...``."""
        if not self._enabled:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        prefix = f"stage/{metrics['stage']}/" if "stage" in metrics else ""
        for name, value in metrics.items():
            if name not in ("epoch", "stage"):
                self._writer.add_scalar(prefix + name, value, int(metrics["epoch"]))
        self._writer.flush()
