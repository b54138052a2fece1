"""Tells when a Ray that this process started loses its raylet; Ray would end the process without a word on that."""

from __future__ import annotations

import os
import re
import select
import sys
from collections.abc import Iterator
from threading import Thread

from raydistill.errors import GOES_ON, RaydistillError

_AGENT = re.compile(r"Agent$|/agent\.py$|/agent/main\.py$")
"""A word of the command by which the raylet starts one of its agents, before it has named itself and afterwards."""


def watch_raylet() -> None:
    """Watch it and its agents, without which it ends, too, until this process ends or leaves its Ray; on Linux."""
    import ray

    if not hasattr(os, "pidfd_open"):
        return
    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    processes = [os.pidfd_open(pid) for pid in (raylet, *_agents_of(raylet))]
    Thread(target=_await_end, args=(processes,), name="raylet", daemon=True).start()


def _agents_of(raylet: int) -> Iterator[int]:
    import psutil  # comes with Ray

    for child in psutil.Process(raylet).children():
        if any(map(_AGENT.search, child.cmdline())):
            yield child.pid


def _await_end(processes: list[int]) -> None:
    import ray

    ends = select.poll()
    for process in processes:
        ends.register(process, select.POLLIN)
    ends.poll()
    for process in processes:
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
