"""The process that tells one tracker of a run: ``python -m raydistill.training.following TRACKER FOLDER KIND``.

It looks into the run's folder, begins where the last one ended, and tries again what did not work. A line on its
standard input says how the run ended; where that closes without one, whoever watched the run is gone.
"""

from __future__ import annotations

import csv
import json
import math
import select
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import yaml

from raydistill.config import flatten
from raydistill.files import write_atomically
from raydistill.track_config import TrackConfig
from raydistill.training.events import scalars
from raydistill.training.run_folder import CONFIG, RunFolder
from raydistill.training.trackers import About, Status, TrackedRun, Tracker, build_tracker

LOOK_EVERY_S = 1.0
TRY_AGAIN_AFTER_S = 30.0
FILES = (CONFIG, "result.json", "metrics.csv", "trials.csv", "best.yaml")
"""What a tracker gets of a finished run, as far as it is there."""


class Follower:
    """What one tracker has been told of a run and, where this is a sweep, of its trials.

    How far that is stands in ``logs/<tracker>.json`` of each, so that a resumed run goes on where it was.
    """

    def __init__(self, name: str, config: Any, folder: RunFolder, kind: str, sweep: Follower | None = None) -> None:
        """Nothing is told, and no package imported, before the run's first step is done."""
        self.folder = folder
        self._name, self._config, self._kind, self._sweep = name, config, kind, sweep
        self._file = folder.path / "logs" / f"{name}.json"
        self._run: TrackedRun | None = None
        self._trials: dict[str, Follower] = {}
        self._ended = self._state().get("ended") == "finished"

    def look(self) -> None:
        """Tell what is new."""
        if self._kind == "tune":
            self._look_at_trials()
        elif self.folder.progress():
            self._tell()

    def end(self, status: Status) -> None:
        """Tell what is left, and how it ended; nothing where nothing had begun."""
        if self._ended:
            return
        self.look()
        for name, trial in self._trials.items():
            trial.end(_statuses(self.folder.path).get(name, "stopped"))
        if self._run is not None:
            files = [path for name in FILES if (path := self.folder.path / name).is_file()]
            self._run.end(status, self.folder.result(), files)
            self._keep({"ended": status})
        self._ended = True

    def _look_at_trials(self) -> None:
        for path in sorted((self.folder.path / "trials").glob(f"*/{CONFIG}")):
            name = path.parent.name
            if name not in self._trials:
                self._trials[name] = Follower(self._name, self._config, RunFolder(path.parent), "trial", self)
        begun = [trial for trial in self._trials.values() if not trial._ended and trial.folder.progress()]
        if begun and self._tracker().follows_sweeps:
            self._begin()
        for trial in begun:
            trial.look()
            if trial.folder.succeeded:
                trial.end("finished")

    def _tell(self) -> None:
        run = self._begin()
        for kind, records in (("stages", self.folder.pretraining()), ("epochs", self.folder.history())):
            for number in range(self._state().get(kind, 0), len(records)):
                run.log(_metrics(records[number]), int(records[number]["epoch"]))
                self._keep({kind: number + 1})

    def _begin(self) -> TrackedRun:
        if self._run is None:
            about = About(
                name=self.folder.path.name,
                kind=self._kind,
                folder=self.folder.path,
                values=flatten(_config_of(self.folder.path)),
                sweep=self._sweep.folder.path.name if self._sweep else None,
                parent=self._sweep._state().get("id") if self._sweep else None,
            )
            self._run = self._tracker().begin(about, self._state().get("id"), lambda name: self._keep({"id": name}))
        return self._run

    def _tracker(self) -> Tracker:
        return build_tracker(self._name, self._config)

    def _state(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.is_file() else {}

    def _keep(self, values: Mapping[str, Any]) -> None:
        write_atomically(self._file, json.dumps({**self._state(), **values}) + "\n")


def follow(follower: Follower, words: IO[str], note: Callable[[str], None]) -> None:
    """Look until a word comes, or the end of them; the first thing that goes wrong goes to ``note``."""
    noted = False

    def succeeds(work: Callable[[], None]) -> bool:
        nonlocal noted
        try:
            work()
        except BaseException as error:  # a tracker may even want to exit
            if not noted:
                noted = True
                first = (str(error).strip().splitlines() or [""])[0]
                note(f"{type(error).__name__}: {first}. The run goes on; all metrics stand in its own folder")
            return False
        return True

    pause = LOOK_EVERY_S
    while not select.select([words], [], [], pause)[0]:
        pause = LOOK_EVERY_S if succeeds(follower.look) else TRY_AGAIN_AFTER_S
    status = cast(Status, words.readline().strip() or "stopped")
    succeeds(lambda: follower.end(status))


def _statuses(sweep: Path) -> dict[str, Status]:
    """How each trial of a finished sweep ended, by its name."""
    if not (sweep / "trials.csv").is_file():
        return {}
    meanings: dict[str, Status] = {"completed": "finished", "stopped": "stopped", "failed": "failed"}
    with (sweep / "trials.csv").open(newline="") as file:
        return {row["trial"]: meanings[row["status"]] for row in csv.DictReader(file)}


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record."""
    return {
        name: float(value)
        for name, value in scalars(record).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((folder / CONFIG).read_text())
    return config


def main() -> None:
    """Follow the run that the command names."""
    name, path, kind = sys.argv[1:]
    folder = RunFolder(Path(path))
    config = getattr(TrackConfig.model_validate(_config_of(folder.path)["track"]), name)

    def note(text: str) -> None:
        if folder.path.is_dir():
            folder.note(f"track.{name}: {text}")

    follow(Follower(name, config, folder, kind), sys.stdin, note)


if __name__ == "__main__":
    main()
