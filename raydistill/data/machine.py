"""How much memory this machine, or the container it plays, has for decoded images."""

from __future__ import annotations

import os
from pathlib import Path

from raydistill.errors import DataError

RESIDENT_SHARE = 0.25
"""Of the memory: Ray's object store takes up to 0.3 for its own copy, and the rest is for the work itself."""

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def fits(size: int) -> bool:
    """Whether decoded images of ``size`` bytes may be held in memory."""
    return size <= RESIDENT_SHARE * memory()


def check_fits(size: int) -> None:
    """Raise ``DataError`` where decoded images of ``size`` bytes may not be held in memory."""
    if not fits(size):
        raise DataError(
            f"all images at once would take {size / 2**30:.1f} GiB decoded, which is more than {RESIDENT_SHARE:.0%} of "
            f"this machine's memory ({memory() / 2**30:.1f} GiB); set data.subset or a smaller data.image_size"
        )


def memory() -> int:
    """Return the bytes of memory that this process may see used."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _LIMITS:
        try:
            sizes.append(int(path.read_text()))
        except (OSError, ValueError):  # no limit reads "max"
            continue
    return min(sizes)
