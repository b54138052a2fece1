"""Making the next things while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from raydistill.threads import thread_beside

T = TypeVar("T")
R = TypeVar("R")


def ahead(make: Callable[[T], R], wanted: Iterable[T], *, depth: int = 2) -> Iterator[R]:
    """Yield ``make(each)`` of all that is wanted, in that order, while a thread makes up to ``depth`` of the next.

    Raises:
        Exception: whatever ``make`` raised, where its result would have come.
    """
    coming: deque[Future[R]] = deque()
    with thread_beside("ahead") as pool:
        try:
            for each in wanted:
                coming.append(pool.submit(make, each))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()
