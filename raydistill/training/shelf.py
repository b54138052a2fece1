"""The folder ``checkpoints/`` of a run: each checkpoint appears in it whole, and the newest sound one is found.

Ray Train could keep them too. But it knows of the newest only, so that a damaged one ends the run; it writes its list
of them in place, where a kill leaves half a list, which ends the run as well; and it keeps either the newest or the
best. Its ``report`` moreover is a meeting of all ranks, which a checkpoint that one rank writes does not need.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from raydistill.errors import RunError
from raydistill.files import TEMPORARY, make_folders, move_folder, temporary_name
from raydistill.training.checkpoint import State, read_record, read_state, write_state
from raydistill.training.checkpoint_files import PREFIX

DAMAGED = "damaged_"
METRIC = "val/top1"


class Shelf:
    """Checkpoints by the number of steps that were done when they were taken, over all stages and epochs."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written before ``put``."""
        self.folder = folder

    def names(self) -> list[str]:
        """All checkpoints, the oldest first."""
        # Those of older versions have a date where the word "step" stands now, and so come first.
        return sorted(path.name for path in self.folder.glob(f"{PREFIX}*") if path.is_dir())

    def at(self, step: int) -> Path:
        """Return where the checkpoint after so many steps lies, or would."""
        return self.folder / f"{PREFIX}step{step:09d}"

    def put(self, state: State, step: int, top1: float | None) -> None:
        """Add a checkpoint; ``top1`` is the validation result of just this student, in percent.

        Raises:
            RunError: with the path and the system's reason; nothing is left behind.
        """
        final = self.at(step)
        temporary = final.with_name(temporary_name(final.name))
        try:
            make_folders(temporary)
            write_state(state, temporary, step=step, **({} if top1 is None else {METRIC: top1}))
            move_folder(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def thin(self, keep: int, *, best: bool) -> None:
        """Remove all but the newest ``keep`` and, if wanted, the earliest with the highest validation result."""
        names = self.names()
        kept = set(names[-keep:])
        results = {name: value for name in names if (value := read_record(self.folder / name).get(METRIC)) is not None}
        if best and results:
            kept.add(max(results, key=lambda name: results[name]))
        for name in names:
            if name not in kept:
                doomed = self.folder / temporary_name(name)
                with contextlib.suppress(OSError):  # an older process of the run may be doing the same
                    (self.folder / name).rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def take(self, device: torch.device, say: Callable[[str], None]) -> tuple[str, State] | None:
        """Return name and state of the newest sound checkpoint; None where there is none at all.

        Damaged ones after it are set aside under another name, and ``say`` is told of each.

        Raises:
            RunError: if all are damaged.
        """
        for left in self.folder.glob(f".*{TEMPORARY}"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        damaged: dict[str, str] = {}
        for name in reversed(self.names()):
            try:
                state = read_state(self.folder / name, device)
            except RunError as error:
                damaged[name] = str(error)
                continue
            for other, problem in damaged.items():
                self._set_aside(other)
                say(f"{problem}; it was set aside, and the run goes on from {name}")
            return name, state
        if damaged:
            problems = "; ".join(damaged.values())
            raise RunError(f"{problems}; no sound checkpoint is left: start the run anew, without --resume")
        return None

    def _set_aside(self, name: str) -> None:
        place = self.folder / f"{DAMAGED}{name}"
        shutil.rmtree(place, ignore_errors=True)
        (self.folder / name).rename(place)
