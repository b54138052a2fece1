"""What to do when memory does not suffice."""

from __future__ import annotations

import re

from raydistill.lazy import torch

_ON_DEVICE = (
    "set train.accumulate (the same steps in smaller parts), train.precision: bf16, a smaller train.batch_size, or "
    "less that a method keeps on the device (queue, negatives, bank)"
)
_ON_HOST = (
    "set cache.read: stream and data.reading: stream (a few blocks in memory instead of all), fewer scale.workers on a "
    "node, a smaller train.batch_size, or less that a method keeps (queue, negatives, bank)"
)
_HOST_SIGNS = re.compile(r"can't allocate memory|not enough memory|running low on memory|OutOfMemoryError|OOM")


def memory_advice(error: BaseException) -> str | None:
    """Say which memory did not suffice and what to change; None where an error is about something else.

    Errors of Ray are known by their text, since they carry that of a worker that is gone.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return f"the device's memory does not suffice ({_first_line(error)}): {_ON_DEVICE}"
    if isinstance(error, MemoryError) or _HOST_SIGNS.search(str(error)):
        return f"the host's memory does not suffice ({_first_line(error)}): {_ON_HOST}"
    return None


def _first_line(error: BaseException) -> str:
    found = [line for line in str(error).splitlines() if _HOST_SIGNS.search(line)] or str(error).splitlines()
    return found[0].strip() if found else type(error).__name__
