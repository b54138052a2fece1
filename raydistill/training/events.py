"""TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


def scalars(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of an epoch's record; those of a stage under its name, as ``stage/<name>/...``."""
    prefix = f"stage/{record['stage']}/" if "stage" in record else ""
    return {prefix + name: value for name, value in record.items() if name not in ("epoch", "stage")}


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
        """Write one epoch's metrics under its number."""
        if not self._enabled:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in scalars(metrics).items():
            self._writer.add_scalar(name, value, int(metrics["epoch"]))
        self._writer.flush()
