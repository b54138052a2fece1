"""Whose turn it is to write a cache, or the copy of a run, on a storage that has no locks.

The object ``_BUILDING`` holds its owner's token and name, and the time. The owner renews it every 15 seconds; others
wait while it is fresh, and take over when it was not renewed for 60 seconds, which means that its owner is dead, or
that clocks are off by a minute. Two that ask in the same moment both write it: the one who reads its own token back a
second later has it. This is not a lock: who was stopped for a minute goes on beside who took over. That does a cache no
harm, since a shard is the same from every builder and is there whole or not at all; it costs time only. Who copies a
run asks ``Lease.held`` before each index.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from raydistill.errors import StorageError
from raydistill.teachers.cache.remote import RemotePath

LEASE = "_BUILDING"
_FRESH_SECONDS = 60.0
_RENEW_SECONDS = 15.0
_LOOK_SECONDS = 2.0
_SETTLE_SECONDS = 1.0
_NAME_LETTERS = 64


@dataclass(frozen=True)
class Lease:
    """The lease of a folder that was taken with a token."""

    folder: RemotePath
    token: str

    def held(self) -> bool:
        """Ask whether it still is, and nobody has taken over. Raises ``StorageError``."""
        return _owner(self.folder, fresh=False) == self.token


@contextlib.contextmanager
def leased(folder: RemotePath, *, wait: bool, waiting: Callable[[], None]) -> Iterator[Lease | None]:
    """Hold the lease of a folder; ``waiting`` is called once where another has it.

    Yields:
        The lease; None where ``wait`` is off and another holds it.

    Raises:
        StorageError: if the storage refuses or cannot be reached.
    """
    token = secrets.token_hex(8)
    told = False
    while not _take(folder, token):
        if not wait:
            yield None
            return
        if not told:
            waiting()
            told = True
        time.sleep(_LOOK_SECONDS)
    over = threading.Event()
    renewer = threading.Thread(target=_renew, args=(folder, token, over), name="cache lease", daemon=True)
    renewer.start()
    try:
        yield Lease(folder, token)
    finally:
        over.set()
        renewer.join()
        with contextlib.suppress(StorageError):  # it then goes stale by itself
            if _owner(folder) == token:
                (folder / LEASE).unlink(missing_ok=True)


def sign_of_life(folder: RemotePath, waiting: Callable[[], None]) -> str | None:
    """Look whether somebody renews the lease of a folder: return who that is, or None once the lease is free.

    ``waiting`` is called once where that takes a while, at most a minute.

    Raises:
        StorageError: if the storage refuses or cannot be reached.
    """
    first = _lease(folder)
    if not _is_fresh(first):
        return None
    waiting()
    while _is_fresh(now := _lease(folder)):
        if now != first:
            return str(now.get("by", "")).strip() or "another process"
        time.sleep(_LOOK_SECONDS)
    return None


def _take(folder: RemotePath, token: str) -> bool:
    if _owner(folder) is not None:
        return False
    _write(folder, token)
    time.sleep(_SETTLE_SECONDS)
    return _owner(folder) == token


def _renew(folder: RemotePath, token: str, over: threading.Event) -> None:
    while not over.wait(_RENEW_SECONDS):
        with contextlib.suppress(StorageError):  # the next time may do; else another takes over
            if _owner(folder, fresh=False) != token:
                return
            _write(folder, token)


def _write(folder: RemotePath, token: str) -> None:
    # Whole seconds, and a padded name, for a constant length: who reads while it is replaced must not get half a lease,
    # that is none.
    by = f"process {os.getpid()} of {platform.node()}"[:_NAME_LETTERS].ljust(_NAME_LETTERS)
    (folder / LEASE).write(json.dumps({"owner": token, "time": int(time.time()), "by": by}))


def _owner(folder: RemotePath, *, fresh: bool = True) -> str | None:
    """Return the token in the lease; None where there is no lease, or none that is fresh."""
    lease = _lease(folder)
    return lease.get("owner") if not fresh or _is_fresh(lease) else None


def _is_fresh(lease: dict[str, Any]) -> bool:
    return bool(lease) and abs(time.time() - lease["time"]) <= _FRESH_SECONDS


def _lease(folder: RemotePath) -> dict[str, Any]:
    """Return owner, time and, of newer leases, name; nothing where there is no lease or none that can be read."""
    try:
        lease = json.loads((folder / LEASE).read_bytes())
        return {**lease, "owner": str(lease["owner"]), "time": float(lease["time"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return {}
