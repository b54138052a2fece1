"""Locks and left-overs of a cache's files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from raydistill.errors import RunError
from raydistill.files import TEMPORARY, open_lock
from raydistill.teachers.cache.lease import leased
from raydistill.teachers.cache.remote import Location, RemotePath

LOCK = ".lock"


def remove_temporaries(folder: Location) -> None:
    """Delete what a killed builder was writing; the caller holds the lock."""
    if isinstance(folder, RemotePath):
        folder.remove_temporaries()
        return
    for path in folder.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Location, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a local folder, which the system frees when the process dies, or a remote one's lease.

    Who has to wait says so once on stderr.

    Yields:
        False where ``wait`` is off and another process holds the lock.

    Raises:
        RunError: if the lock can't be written.
        StorageError: if a remote storage refuses or cannot be reached.
    """
    if isinstance(folder, RemotePath):
        with leased(folder, wait=wait, waiting=_say_waiting) as lease:
            yield lease is not None
    else:
        with flocked(folder / LOCK, wait=wait, waiting=_say_waiting) as mine:
            yield mine


@contextlib.contextmanager
def flocked(path: Path, *, wait: bool = True, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold a lock file, which the system frees when the process dies; ``waiting`` is called where another holds it.

    Yields:
        False where ``wait`` is off and another process holds it.

    Raises:
        RunError: if the file can't be written.
    """
    try:
        descriptor = open_lock(path)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        mine = _take(descriptor, fcntl.LOCK_NB)
        if not mine and wait:
            waiting()
            mine = _take(descriptor)
        yield mine
    finally:
        os.close(descriptor)


def _take(descriptor: int, flags: int = 0) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except BlockingIOError:
        return False
    return True


def _say_waiting() -> None:
    print("another build of this cache is at work; waiting", file=sys.stderr, flush=True)
