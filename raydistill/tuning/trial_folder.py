"""The folder of a trial: a run's folder with ``trial.json``, from which a sweep can be told and taken up again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from raydistill.errors import RunError
from raydistill.files import write_atomically
from raydistill.training.run_folder import CHECKPOINTS, RunFolder
from raydistill.tuning.agenda import FINALISTS, TRIALS, Job
from raydistill.tuning.descent import Changes, Descent

RECORD = "trial.json"
GENERATIONS = "generations.jsonl"
STATE = "logs/sweep.json"
Status = Literal["running", "completed", "stopped", "failed"]


class TrialFolder(RunFolder):
    """Reads and writes what one trial leaves behind."""

    @property
    def record(self) -> dict[str, Any]:
        """What ``trial.json`` says, or nothing."""
        return dict(self._json(RECORD))

    @property
    def changes(self) -> Changes:
        """With which values these weights were trained, and those that they go back to."""
        record = self.record
        return record.get("changes") or [{"epoch": 0, "from_trial": None, "values": record["values"]}]

    def claim(self, job: Job, descent: Descent | None = None) -> None:
        """Begin with a job, or go on with what stands here, or with what another trial left.

        Raises:
            RunError: where the folder holds a trial with other values.
        """
        before = self.record
        if not before:
            self.path.mkdir(parents=True, exist_ok=True)
            self._write({**job.to_dict(), "status": "running", "cause": None})
        elif descent is not None and descent.trial != job.number:
            changes = descent.followed_by(job.values)
            if changes != before.get("changes"):  # else it has done so before, and may be over
                self._write({**before, "values": job.values, "changes": changes, "status": "running", "cause": None})
        elif (before["values"], before["seed"]) != (job.values, job.seed):
            raise RunError(f"{self.path}: holds a trial with other values; give the sweep another name=...")

    def mark(self, status: Status, cause: str | None = None, **found: Any) -> None:
        """Say how the trial stands, and what was found out about it."""
        self._write({**self.record, **found, "status": status, "cause": cause})

    def keep_generation(self, metrics: Mapping[str, Any], descent: Descent) -> None:
        """Add what the trial reports at the end of a generation, and leaves to others: a takeover changes the rest."""
        kept = [*self._lines(GENERATIONS), {"metrics": dict(metrics), "descent": asdict(descent)}]
        write_atomically(self.path / GENERATIONS, "".join(json.dumps(line) + "\n" for line in kept))

    def generations(self) -> list[tuple[dict[str, Any], Descent]]:
        """Return what ``keep_generation`` wrote."""
        return [(line["metrics"], Descent(**line["descent"])) for line in self._lines(GENERATIONS)]

    def forget_checkpoints(self) -> None:
        """Remove what a trial that is over will not go on from."""
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def _write(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.path / RECORD, json.dumps(dict(record)) + "\n")


def write_state(sweep: Path, slots: int, total: int, hours: float) -> None:
    """Keep how many trials run at a time, as the order of a sweep follows from it, their number, and its hours."""
    write_atomically(sweep / STATE, json.dumps({"slots": slots, "total": total, "hours": hours}))


def read_state(sweep: Path) -> dict[str, Any]:
    """Return what ``write_state`` wrote, or nothing."""
    path = sweep / STATE
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def trials_of(sweep: Path) -> list[TrialFolder]:
    """Return the folders of a sweep's trials, by their numbers."""
    return _with_records(sweep / TRIALS)


def finalists_of(sweep: Path) -> list[TrialFolder]:
    """Return the folders of what was trained anew with other seeds."""
    return _with_records(sweep / FINALISTS)


def _with_records(folder: Path) -> list[TrialFolder]:
    return [TrialFolder(path.parent) for path in sorted(folder.glob(f"*/{RECORD}"))]
