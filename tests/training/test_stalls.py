"""A batch that does not come is named while it is awaited."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from raydistill.training.stalls import stalls_told

PATIENCE = 0.2


def test_a_stall_is_told_once_and_its_end_too() -> None:
    said: list[str] = []
    told = threading.Event()
    number = 0

    def say(text: str) -> None:
        said.append(text)
        told.set()

    def batches() -> Iterator[int]:
        nonlocal number
        for number in range(4):
            if number == 2:
                assert told.wait(30)
            yield number

    assert list(stalls_told(batches(), say, lambda: f"batch {number}", PATIENCE)) == [0, 1, 2, 3]
    assert said[0] == "batch 2 has not come for 0 s"
    assert said[1].startswith("batch 2 came after ")
    assert len(said) == 2


def test_a_step_that_takes_long_is_no_stall() -> None:
    said: list[str] = []
    for _ in stalls_told(range(2), said.append, lambda: "a batch", PATIENCE):
        threading.Event().wait(3 * PATIENCE)
    assert said == []


def test_the_watch_ends_with_the_batches_and_with_their_error() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(stalls_told(broken(), print, str))
    assert not [thread for thread in threading.enumerate() if thread.name == "stalls"]
