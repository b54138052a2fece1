"""Gives Ray's processes more than the half minute that Ray waits for them, which a busy machine may need."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raydistill.errors import RunError

START_S = 180.0
LOOK_EVERY_S = 0.1


@contextmanager
def patient_start() -> Iterator[None]:
    """Let a Ray that is started meanwhile take its time.

    Ray counts 30 seconds between questions whether its node is there, so a question is held back until it is.

    Raises:
        RunError: where it does not come up even so.
    """
    from ray._private import services

    deadline, ask = time.monotonic() + START_S, services.get_node

    def ask_until_there(*arguments: Any) -> Any:
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"Ray's processes did not come up within {START_S:.0f} s: give this machine less to do, or see "
                        "their logs in the folder session_latest/logs below RAY_TMPDIR, or /tmp/ray"
                    ) from None
            time.sleep(LOOK_EVERY_S)

    services.get_node = ask_until_there
    try:
        yield
    finally:
        services.get_node = ask
