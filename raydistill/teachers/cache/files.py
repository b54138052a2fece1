"""Hashes, locks and left-overs of a cache's files."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from raydistill.errors import RunError
from raydistill.files import TEMPORARY

LOCK = ".lock"
_BLOCK = 1 << 22


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed builder was writing; the caller holds the lock."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder, which the system frees when the process dies.

    Yields:
        False where ``wait`` is off and another process holds the lock.
    """
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RunError(f"cannot write {folder / LOCK}: {error.strerror or error}") from error
    try:
        yield _take(descriptor, wait)
    finally:
        os.close(descriptor)


def _take(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
