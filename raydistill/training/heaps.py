"""How many heaps the threads of a process have."""

from __future__ import annotations

import contextlib
import ctypes

_M_ARENA_MAX = -8  # of glibc's malloc.h
HEAPS = 2


def share_heaps() -> None:
    """Let the threads of this process share two heaps, where the C library is glibc.

    It gives every new thread a heap of its own, until there are eight for each core, and returns little of them.
    Threads that read ahead begin anew with each epoch, so their heaps grow through many epochs.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, HEAPS)
