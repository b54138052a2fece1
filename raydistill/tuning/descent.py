"""What a trial of a population leaves to whoever goes on from it. No Ray here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "descent.json"

Changes = list[dict[str, Any]]
"""From which ``epoch`` on weights were trained with which ``values``, and ``from_trial``, whose they were until then.

The first one is at epoch 0, from no trial. Without values a key is as in the experiment.
"""


@dataclass(frozen=True)
class Descent:
    """A trial at the end of an epoch: where its state lies, and how it came to be."""

    trial: int
    epoch: int
    checkpoint: str
    changes: Changes

    def write(self, folder: Path) -> None:
        """Leave it in a folder."""
        (folder / FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Descent:
        """Return what ``write`` left."""
        return cls(**json.loads((folder / FILE).read_text()))

    def followed_by(self, values: dict[str, Any]) -> Changes:
        """Return the changes of whoever goes on from here with such values."""
        return [*self.changes, {"epoch": self.epoch, "from_trial": self.trial, "values": values}]
