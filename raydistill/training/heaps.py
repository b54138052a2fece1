"""Memory that the process has freed and its C library kept."""

from __future__ import annotations

import contextlib
import ctypes


def return_freed() -> None:
    """Return to the system what this process has freed, where the C library is glibc.

    By itself glibc returns no more than the end of a heap, where something small may be held for long.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
