"""How long work tells how far it is, to whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

Progress = Callable[[float, str], None]
"""Is told the share of the work that is done, from 0 to 1, and what comes next."""


def unwatched(share: float, next_step: str) -> None:
    """Tell nobody."""


def part(progress: Progress, first: float, last: float) -> Progress:
    """Return what one part of the work tells, from the share ``first`` of the whole to ``last``."""

    def told(share: float, next_step: str) -> None:
        progress(first + share * (last - first), next_step)

    return told


def counted(items: Sequence[T], progress: Progress, name: str) -> Iterator[T]:
    """Yield the items, telling before each that ``name`` so and so of so many comes next."""
    for number, item in enumerate(items):
        progress(number / len(items), f"{name} {number + 1} of {len(items)}")
        yield item
