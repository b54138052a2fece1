"""Tells when the raylet of a Ray that this process started dies; Ray would end the process without a word on that."""

from __future__ import annotations

import os
import sys
from threading import Thread

from raydistill.errors import RaydistillError


def watch_raylet() -> None:
    """Watch it until this process ends, or leaves its Ray."""
    import ray

    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process
    Thread(target=_await_end, args=(raylet.pid,), name="raylet", daemon=True).start()


def _await_end(pid: int) -> None:
    import ray

    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its end is left for Ray to see
    if not ray.is_initialized():
        return
    print(
        "raydistill: Ray was lost: its raylet, which starts this machine's processes, was killed or died; the same "
        "command goes on (train and tune: with --resume)",
        file=sys.stderr,
        flush=True,
    )
    # Nothing can be asked of Ray any more; seconds later it would end this process in the same way.
    os._exit(RaydistillError.exit_code)
