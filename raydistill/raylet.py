"""Stands by the raylet of a Ray that this process started: tells of its loss, and lets none of its processes go on."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Iterable
from threading import Thread

from raydistill.errors import GOES_ON, RaydistillError

_AGENT = re.compile(r"Agent$|/agent\.py$|/agent/main\.py$")
"""A word of the command by which the raylet starts one of its agents, before it has named itself and afterwards."""
_LEAVE_S = 5.0
"""Most processes leave within a second of their raylet's end."""


def stand_by_raylet() -> None:
    """Watch it and its agents, without which it ends, too, until this process ends or leaves its Ray; on Linux.

    Ray would end this process without a word. And its workers look after their raylet by timers of the wall clock:
    where that was set back meanwhile, they go on for hours after it, so those that do are killed as this process ends.
    """
    if not hasattr(os, "pidfd_open"):
        return
    raylet = _raylet()
    watched = _opened([raylet, *_children(raylet, agents=True)])
    Thread(target=_tell_of_loss, args=(watched,), name="raylet", daemon=True).start()
    atexit.register(_end_ray)  # goes before Ray's own handler, which was registered as Ray was imported


def _raylet() -> int:
    import ray

    pid: int = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    return pid


def _children(raylet: int, *, agents: bool) -> list[int]:
    import psutil  # comes with Ray

    found = []
    for child in psutil.Process(raylet).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # any more
            if any(map(_AGENT.search, child.cmdline())) == agents:
                found.append(child.pid)
    return found


def _tell_of_loss(watched: list[int]) -> None:
    import ray

    _await_one(watched)
    for process in watched:
        os.close(process)
    if not ray.is_initialized():
        return
    print(
        "raydistill: Ray was lost: its raylet, which starts this machine's processes, or an agent of it died; "
        f"{GOES_ON}",
        file=sys.stderr,
        flush=True,
    )
    # Nothing can be asked of Ray any more; seconds later it would end this process in the same way.
    os._exit(RaydistillError.exit_code)


def _end_ray() -> None:
    import psutil
    import ray

    try:
        workers = _opened(_children(_raylet(), agents=False))
    except (AttributeError, KeyError, psutil.NoSuchProcess):  # this process has left it, or joined another
        return
    ray.shutdown()
    until = time.monotonic() + _LEAVE_S
    while workers and (left := until - time.monotonic()) > 0:
        for process in _await_one(workers, left):
            workers.remove(process)
            os.close(process)
    for process in workers:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def _opened(pids: Iterable[int]) -> list[int]:
    """Descriptors of those processes that still live; they never mean another process that got the same number."""
    opened = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            opened.append(os.pidfd_open(pid))
    return opened


def _await_one(processes: Iterable[int], seconds: float | None = None) -> list[int]:
    """Wait until one of these processes has ended; return those that have."""
    ends = select.poll()
    for process in processes:
        ends.register(process, select.POLLIN)
    return [process for process, _ in ends.poll(None if seconds is None else 1000 * seconds)]
