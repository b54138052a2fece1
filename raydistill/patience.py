"""Gives Ray's processes more than the half minute that Ray waits for them, which a busy machine may need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

START_S = 180.0
LOOK_EVERY_S = 0.1


@contextmanager
def patient_start() -> Iterator[None]:
    """Let a Ray that is started meanwhile take its time.

    Ray gives up 30 seconds after it first asked whether its node is there, so that question is held back until it is,
    or ``START_S`` are over.
    """
    from ray._private import services

    deadline, ask = time.monotonic() + START_S, services.get_node

    def ask_until_there(*arguments: Any) -> Any:
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_EVERY_S)

    services.get_node = ask_until_there
    try:
        yield
    finally:
        services.get_node = ask
