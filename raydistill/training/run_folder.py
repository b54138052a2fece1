"""The folder ``runs/<name>/`` that explains a run by itself. ``_SUCCESS`` is written last."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from raydistill.config import Experiment
from raydistill.errors import ConfigError, DataError, RunError
from raydistill.files import link_out_of, make_folders, open_lock, temporary_names, write_atomically

SUCCESS = "_SUCCESS"
CONFIG = "config.yaml"
NOTICES = "notices.jsonl"
PROGRESS = "progress.json"
ATTEMPTS = "attempts.jsonl"
CHECKPOINTS = "checkpoints"
PROFILE = "profile"
PACKAGES = ("raydistill", "torch", "torchvision", "ray", "numpy", "pandas", "pyarrow", "pydantic")


@contextmanager
def claimed(folder: Path, *, resume: bool, backup: str | None = None) -> Iterator[RunFolder]:
    """Give a run its folder for as long as the context lasts, and its copy below the URL ``backup``.

    A folder that a living process writes to is refused, and so is one that holds anything but a run.

    Raises:
        ConfigError: where folder or copy cannot be taken, or there is nothing to resume.
        InputError: where the copy is damaged, or its storage cannot be reached.
        RunError: where the folder cannot be made, or at the end not be copied.
    """
    with locked_run(folder), ExitStack() as until_the_end:
        run = RunFolder(folder)
        if backup is not None:
            from raydistill.training.backup.keeping import kept

            run.begun = until_the_end.enter_context(kept(run, backup, resume=resume)).begin
        holds_run = (folder / CONFIG).is_file()
        if resume and not holds_run:
            nor = "" if backup is None else f", nor in {backup}"
            raise ConfigError(f"{folder}: there is no run to resume here{nor}; leave out --resume to start it")
        if folder.exists() and not holds_run and {*folder.iterdir()} - {*_begun_in_vain(folder)}:
            raise ConfigError(f"{folder}: holds other files than a run's; give the run a folder of its own")
        if resume and (link := link_out_of(folder)):
            raise ConfigError(f"{link}: leads out of the run's folder, where a run writes nothing; remove the link")
        yield run


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, there or not; where it is not at the end, nothing of the lock is left.

    Raises:
        ConfigError: where another process holds it.
        RunError: where it cannot be made.
    """
    path = folder.parent / f".{folder.name}.lock"
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        lock = _locked(path)
    except BlockingIOError:
        raise ConfigError(f"{folder}: another process is writing this run; give yours another name=...") from None
    except OSError as error:
        raise RunError(f"{folder}: cannot be made: {error.strerror}") from None
    with lock:
        try:
            yield
        finally:
            if not folder.exists():
                with suppress(OSError):  # others have put something into the folders meanwhile
                    path.unlink()
                    for parent in made:
                        parent.rmdir()


def _locked(path: Path) -> TextIO:
    """Open a lock file and lock it; one that its holder removed meanwhile is no lock, and made anew."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as unless_kept:
            try:
                lock = unless_kept.enter_context(os.fdopen(open_lock(path), "w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(lock.fileno()), path.lstat()):
                    unless_kept.pop_all()
                    return lock
            except FileNotFoundError:
                continue


def _begun_in_vain(folder: Path) -> Iterator[Path]:
    """Give what runs have left that were killed while they wrote their first file."""
    return folder.glob(temporary_names(CONFIG))


def _free_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return aside


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        """Nothing is written before ``begin``."""
        self.path = path
        self.begun: Callable[[], None] = lambda: None
        self._start: dict[str, float] = {}
        self._noticed_before = 0

    @property
    def succeeded(self) -> bool:
        """Whether the run ended as it should."""
        return (self.path / SUCCESS).is_file()

    def begin(self, experiment: Experiment, *, resume: bool = False) -> None:
        """Make the folder with the resolved configuration and the environment.

        An earlier run is never overwritten: without ``resume`` it is moved to ``<name>.1``, ``<name>.2``, ..., which a
        notice tells.
        """
        aside = _free_name(self.path) if not resume and (self.path / CONFIG).is_file() else None
        if aside is not None:
            self.path.rename(aside)
        (self.path / SUCCESS).unlink(missing_ok=True)
        make_folders(self.path)
        for lost in _begun_in_vain(self.path):
            lost.unlink()
        write_atomically(self.path / CONFIG, experiment.to_yaml())  # first: by it the folder is known
        make_folders(self.path / "logs", self.path / CHECKPOINTS)
        self._noticed_before = len(self._lines(f"logs/{NOTICES}"))
        write_atomically(self.path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        if aside is not None:
            self.note(f"the earlier run of this name is {aside} now")
        self.begun()

    def note_environment(self, **values: Any) -> None:
        """Add to ``environment.json`` what was found out after the run began."""
        found = {**self._json("environment.json"), **values}
        write_atomically(self.path / "environment.json", json.dumps(found, indent=2) + "\n")

    def list_skipped(self, skipped: Sequence[object]) -> None:
        """Name every image that could not be decoded, with the reason, in ``skipped.txt``; nothing where all could."""
        if skipped:
            write_atomically(self.path / "skipped.txt", "".join(f"{line}\n" for line in skipped))

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write ``metrics.jsonl`` and ``metrics.csv`` with one record an epoch."""
        columns = list(dict.fromkeys(name for record in history for name in record))
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))
        lines = _Lines()
        writer = csv.DictWriter(lines, columns)
        writer.writeheader()
        writer.writerows(history)
        write_atomically(self.path / "metrics.csv", "".join(lines))

    def history(self) -> list[dict[str, float]]:
        """Return what ``write_history`` wrote, or nothing."""
        return self._lines("metrics.jsonl")

    def write_pretraining(self, records: list[dict[str, Any]]) -> None:
        """Write ``pretraining.jsonl`` with one record an epoch of the stages before distillation, if there are any."""
        if records:
            write_atomically(self.path / "pretraining.jsonl", "".join(json.dumps(record) + "\n" for record in records))

    def pretraining(self) -> list[dict[str, Any]]:
        """Return what ``write_pretraining`` wrote, or nothing."""
        return self._lines("pretraining.jsonl")

    def note_start(self, marks: Mapping[str, float]) -> None:
        """Keep the times of the way here; with that of the first step they go into ``logs/startup.json``."""
        self._start = dict(marks)

    def write_progress(self, values: Mapping[str, Any]) -> None:
        """Leave word of where the epoch stands, for whoever shows it."""
        if self._start:
            marks = json.dumps({**self._start, "first_step": time.time()})
            write_atomically(self.path / "logs" / "startup.json", marks)
            self._start = {}
        temporary = self.path / "logs" / f"{PROGRESS}.tmp"
        temporary.write_text(json.dumps(dict(values)))
        temporary.replace(self.path / "logs" / PROGRESS)

    def progress(self) -> dict[str, Any]:
        """Return the last word of ``write_progress``, or nothing."""
        return dict(self._json(f"logs/{PROGRESS}"))

    def write_failure(self, kind: str, message: str) -> None:
        """Leave word of what went wrong."""
        write_atomically(self.path / "logs" / "failure.json", json.dumps({"kind": kind, "message": message}))

    def failure(self) -> dict[str, str]:
        """Return what ``write_failure`` wrote, or nothing."""
        return dict(self._json("logs/failure.json"))

    def forget_failure(self) -> None:
        """Remove the word of an earlier failure, before a run goes on."""
        (self.path / "logs" / "failure.json").unlink(missing_ok=True)

    def write_diverged(self, found: Mapping[str, Any]) -> None:
        """Write ``logs/diverged.json``: the step and the batch with which a loss stopped being finite."""
        write_atomically(self.path / "logs" / "diverged.json", json.dumps(dict(found)) + "\n")

    def note(self, text: str) -> None:
        """Keep a line for the user in ``logs/notices.jsonl``."""
        _append(self.path / "logs" / NOTICES, {"time": time.time(), "text": text})

    def notices(self) -> list[str]:
        """Return the lines of ``note``; where ``begin`` was called here, those since then."""
        return [found["text"] for found in self._lines(f"logs/{NOTICES}")[self._noticed_before :]]

    def begin_attempt(self, step: int, workers: int) -> list[int]:
        """Note that workers begin at a step of the run; return the steps at which all attempts began."""
        attempt = {"time": time.time(), "pid": os.getpid(), "step": step, "workers": workers}
        _append(self.path / "logs" / ATTEMPTS, attempt)
        return self.attempts()

    def attempts(self) -> list[int]:
        """Return what ``begin_attempt`` returned last, or nothing."""
        return [found["step"] for found in self._lines(f"logs/{ATTEMPTS}")]

    def forget_attempts(self) -> None:
        """Begin to count anew, before a run goes on."""
        (self.path / "logs" / ATTEMPTS).unlink(missing_ok=True)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        write_atomically(self.path / "result.json", json.dumps(dict(result), indent=2) + "\n")

    def result(self) -> dict[str, Any]:
        """Return what ``write_result`` wrote, or nothing."""
        return dict(self._json("result.json"))

    def succeed(self) -> None:
        """Say that the run is whole."""
        write_atomically(self.path / SUCCESS, "")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        return [_object(path, line) for line in path.read_text().splitlines()] if path.is_file() else []

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return _object(path, path.read_text()) if path.is_file() else {}


def _append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line to a file; where the disk has no room for all of it nothing, as half a line makes a file unreadable.

    Raises:
        RunError: with the path and the system's reason.
    """
    line = (json.dumps(dict(record)) + "\n").encode()
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) < len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def _object(path: Path, text: str) -> dict[str, Any]:
    """Return the JSON object of a text of the file ``path``. Raises ``DataError``."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: damaged: it holds {type(found).__name__} instead of an object")
    return found


class _Lines(list[str]):
    """A list that the csv module can write to."""

    write = list.append


def environment() -> dict[str, Any]:
    """What a run was made with: versions, machine, command."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {package: version(package) for package in PACKAGES},
    }
