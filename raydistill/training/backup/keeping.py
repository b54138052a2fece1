"""Keeps the copy of a run beside its training, in a thread that training never waits for."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from raydistill.errors import ConfigError, RaydistillError, RunError, first_line
from raydistill.teachers.cache import store
from raydistill.teachers.cache.files import LOCK, flocked
from raydistill.teachers.cache.lease import leased, sign_of_life
from raydistill.teachers.cache.remote import Location
from raydistill.training.backup.copying import Copier
from raydistill.training.backup.index import INDEX
from raydistill.training.backup.restoring import restore
from raydistill.training.run_folder import RunFolder

EVERY_S = 5.0
FRUITLESS_S = 60.0
"""So long the last copy is tried without anything of it having arrived."""
INTERRUPTED_S = 30.0
"""So long it may take after a run that failed or was interrupted."""
QUIET_S = 3.0
"""A command that is longer at it says so."""


@contextlib.contextmanager
def kept(folder: RunFolder, url: str, *, resume: bool) -> Iterator[Backup]:
    """Give a run its copy below ``url`` for as long as the context lasts; the caller holds the run's lock.

    A run that goes on and is not in its folder is taken from there first. The copy begins with ``Backup.begin``, and is
    brought to the end with the context, also of a run that has finished before.

    Raises:
        InputError: where the copy is another's, or damaged where it is needed, or its storage cannot be reached.
        RunError: at the end, where the last state did not get there.
    """
    place = store.location(url) / folder.path.name
    with _alone(place) as may_write:
        there = store.size_of(place / INDEX) is not None
        if there and not resume:
            raise ConfigError(
                f"{place}: holds the copy of a run already; --resume goes on with it, or give this one another name=..."
            )
        if there and not (folder.path.exists() and any(folder.path.iterdir())):
            restore(place, folder.path)
            _say(f"{folder.path}: taken from {place}")
        backup = Backup(folder, place, may_write, own=not there)
        try:
            yield backup
        except BaseException:
            if problem := backup.finish(INTERRUPTED_S):
                _say(problem)
            raise
        if resume and folder.succeeded:  # before this command, whose last copy may have failed
            backup.begin()
        if problem := backup.finish():
            raise RunError(problem)


class Backup:
    """The thread that copies a run's folder every few seconds in which it changed."""

    def __init__(self, folder: RunFolder, place: Location, may_write: Callable[[], None], *, own: bool) -> None:
        """Nothing is copied before ``begin``; ``own`` is a copy that was not there before.

        ``may_write`` raises where the copy is another's meanwhile.
        """
        self._folder, self._own = folder, own
        self._copier = Copier(folder.path, place, self._require_turn)
        self._may_write = may_write
        self._problem: str | None = None
        self._over, self._left = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to copy: the folder is this run's now."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="backup", daemon=True)
            self._thread.start()

    def finish(self, patience: float | None = None) -> str | None:
        """Copy what is still missing, for at most ``patience`` seconds; return what stands against it, in one line."""
        if self._thread is None:
            return None
        self._over.set()
        deadline = None if patience is None else time.monotonic() + patience
        try:
            self._thread.join(QUIET_S)
            if self._thread.is_alive():
                _say(f"{self._folder.path}: the rest is being copied to {self._copier.place}")
            self._thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            self._left.set()
        if self._thread.is_alive():
            self._problem = "it took too long"
        if self._problem is None:
            return None
        return (
            f"{self._folder.path}: all of it is here, but its copy {self._copier.place} lacks the end "
            f"({self._problem}); the same command with --resume copies it"
        )

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self._turn()
        self._copier.moved = time.monotonic()
        while not self._turn() and time.monotonic() < self._copier.moved + FRUITLESS_S:
            if self._left.wait(EVERY_S):
                return

    def _turn(self) -> bool:
        """Copy once; what goes wrong is one notice until it goes well again."""
        try:
            if self._folder.path.is_dir():
                self._copier.turn()
            elif self._own:  # nothing was trained, so nothing is left
                self._copier.remove()
        except Exception as error:  # whatever it is, training goes on
            problem = first_line(error) if isinstance(error, RaydistillError | OSError) else repr(error)
            if self._problem is None:
                self._note(f"backup: {problem}; it is tried again, and the run goes on")
            self._problem = problem
            return False
        if self._problem is not None:
            self._note("backup: goes on")
        self._problem = None
        return True

    def _require_turn(self) -> None:
        if self._left.is_set():
            raise RunError("the command has ended")
        self._may_write()

    def _note(self, text: str) -> None:
        with contextlib.suppress(RunError):  # on a full disk, too, copying goes on
            self._folder.note(text)


@contextlib.contextmanager
def _alone(place: Location) -> Iterator[Callable[[], None]]:
    """Be the only one that writes to a copy; yields what raises ``RunError`` once another has taken over.

    Raises:
        ConfigError: where another process, which is named, writes to it.
        StorageError: if the storage cannot be reached or refuses.
    """
    if isinstance(place, Path):
        store.prepare(place)
        with flocked(place / LOCK, wait=False) as mine:
            if not mine:
                raise _taken(place, "another process")
            yield lambda: None
        return
    other = sign_of_life(place, lambda: _say(f"{place}: written a moment ago; looking whether its writer lives"))
    if other is not None:
        raise _taken(place, other)
    with leased(place, wait=False, waiting=lambda: None) as lease:
        if lease is None:
            raise _taken(place, "another process")

        def may_write() -> None:
            if not lease.held():
                raise RunError(f"{place}: another process has taken over this copy; this run is not copied any more")

        yield may_write


def _taken(place: Location, other: str) -> ConfigError:
    return ConfigError(f"{place}: {other} writes this copy; wait until that has ended, or give yours another name=...")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
