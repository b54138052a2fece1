from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from raydistill.tuning.turns import AsTheyCome, Turns

STOPS = [1, 3, 9]


class Sweep:
    """Trials that report at the stops and are stopped at the epoch that ``ends`` says; reports arrive in any order."""

    def __init__(self, ends: list[int], slots: int, order: random.Random) -> None:
        self.ends, self.order = ends, order
        self.begun = 0
        self.turns = Turns(STOPS, slots, lambda: self.begun < len(ends))
        self.live: dict[int, int] = {}
        self.judged: list[tuple[int, int]] = []
        for _ in range(min(slots, len(ends))):
            self.begin()

    def begin(self) -> None:
        self.turns.begin(self.begun)
        self.live[self.begun] = 0
        self.begun += 1

    def run(self) -> list[tuple[int, int]]:
        waiting: set[int] = set()
        while self.live:
            ready = [number for number in self.live if number not in waiting]
            number = self.order.choice(ready)
            epoch = next(stop for stop in STOPS if stop > self.live[number])
            assert self.turns.matters(number, epoch, final=False)
            self.live[number] = epoch
            self.turns.arrive(number, epoch)
            waiting.add(number)
            while (due := self.turns.due()) is not None:
                self.judged.append((due, self.live[due]))
                waiting.remove(due)
                ended = self.live[due] >= self.ends[due]
                self.turns.judge(due, ended=ended)
                if ended:
                    del self.live[due]
                    if self.begun < len(self.ends):
                        self.begin()
        return self.judged


@given(
    st.lists(st.sampled_from(STOPS), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(0, 2**31),
    st.integers(0, 2**31),
)
def test_the_order_of_verdicts_does_not_depend_on_how_fast_trials_are(
    ends: list[int], slots: int, one: int, other: int
) -> None:
    verdicts = Sweep(ends, slots, random.Random(one)).run()
    assert verdicts == Sweep(ends, slots, random.Random(other)).run()
    assert sorted(verdicts) == [(number, stop) for number, end in enumerate(ends) for stop in STOPS if stop <= end]


def test_with_one_slot_trials_are_judged_one_after_the_other() -> None:
    assert Sweep([3, 1, 9], 1, random.Random(0)).run() == [(0, 1), (0, 3), (1, 1), (2, 1), (2, 3), (2, 9)]


def test_a_report_waits_until_a_free_slot_is_taken() -> None:
    turns = Turns(STOPS, 2, more=lambda: True)
    turns.begin(0)
    turns.arrive(0, 1)
    assert turns.due() is None
    turns.begin(1)
    assert turns.due() == 0


def test_what_was_judged_is_not_judged_again() -> None:
    turns = Turns(STOPS, 1, more=lambda: False)
    turns.begin(0)
    turns.arrive(0, 1)
    turns.judge(0, ended=False)
    assert not turns.matters(0, 1, final=False)
    assert not turns.matters(0, 2, final=False)
    assert turns.matters(0, 2, final=True)
    assert turns.matters(0, 3, final=False)


def test_a_trial_that_is_postponed_holds_nobody_up() -> None:
    turns = Turns(STOPS, 2, more=lambda: False)
    turns.begin(0)
    turns.begin(1)
    turns.arrive(1, 1)
    assert turns.due() is None
    turns.postpone(0)
    assert turns.due() == 1


def test_as_they_come_waits_for_nobody() -> None:
    turns = AsTheyCome(STOPS, 2, more=lambda: True)
    turns.begin(0)
    turns.begin(1)
    turns.arrive(1, 3)
    assert turns.due() == 1


def test_a_report_that_is_withdrawn_comes_again() -> None:
    turns = Turns(STOPS, 1, more=lambda: False)
    turns.begin(0)
    turns.arrive(0, 1)
    turns.withdraw(0)
    assert turns.due() is None
    turns.arrive(0, 1)
    assert turns.due() == 0
