"""Whose turn it is to build a cache on a storage that has no locks.

The object ``_BUILDING`` holds its owner's token and the time. The owner renews it every 15 seconds; others wait while
it is fresh, and take over when it was not renewed for 60 seconds, which means that its owner is dead, or that clocks
are off by a minute. Two builders that ask in the same moment both write it: the one who reads its own token back a
second later has it. This is not a lock: who was stopped for a minute goes on beside who took over. That does no harm,
since a shard is the same from every builder and is there whole or not at all; it costs time only.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator

from raydistill.errors import StorageError
from raydistill.teachers.cache.remote import RemotePath

LEASE = "_BUILDING"
_FRESH_SECONDS = 60.0
_RENEW_SECONDS = 15.0
_LOOK_SECONDS = 2.0
_SETTLE_SECONDS = 1.0


@contextlib.contextmanager
def leased(folder: RemotePath, *, wait: bool, waiting: Callable[[], None]) -> Iterator[bool]:
    """Hold the lease of a cache; ``waiting`` is called once where another has it.

    Yields:
        False where ``wait`` is off and another holds it.

    Raises:
        StorageError: if the storage refuses or cannot be reached.
    """
    token = secrets.token_hex(8)
    told = False
    while not _take(folder, token):
        if not wait:
            yield False
            return
        if not told:
            waiting()
            told = True
        time.sleep(_LOOK_SECONDS)
    over = threading.Event()
    renewer = threading.Thread(target=_renew, args=(folder, token, over), name="cache lease", daemon=True)
    renewer.start()
    try:
        yield True
    finally:
        over.set()
        renewer.join()
        with contextlib.suppress(StorageError):  # it then goes stale by itself
            if _owner(folder) == token:
                (folder / LEASE).unlink(missing_ok=True)


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
    # Whole seconds, for a constant length: who reads while it is replaced must not get half a lease, that is none.
    (folder / LEASE).write(json.dumps({"owner": token, "time": int(time.time())}))


def _owner(folder: RemotePath, *, fresh: bool = True) -> str | None:
    """Return the token in the lease; None where there is no lease, or none that is fresh."""
    try:
        lease = json.loads((folder / LEASE).read_bytes())
        owner, written = str(lease["owner"]), float(lease["time"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return None if fresh and abs(time.time() - written) > _FRESH_SECONDS else owner
