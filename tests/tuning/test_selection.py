from __future__ import annotations

import pytest

from raydistill.tuning.selection import standings, tied_with


def test_the_best_mean_comes_first_and_equal_ones_keep_their_order() -> None:
    found = {3: [90.0, 92.0], 1: [91.0, 91.0], 2: [80.0, 99.0]}
    assert [standing.trial for standing in standings(found, "max")] == [1, 3, 2]
    assert [standing.trial for standing in standings(found, "min")] == [2, 1, 3]
    assert standings(found, "max")[1].spread == pytest.approx(2.0**0.5)


def test_a_win_within_the_noise_is_a_tie() -> None:
    far, near, best = [80.0, 80.2, 79.8], [89.9, 90.3, 90.1], [90.0, 90.4, 90.2]
    assert tied_with({0: far, 1: near, 2: best}, best=2) == [1]


def test_without_spread_only_equal_values_tie() -> None:
    assert tied_with({0: [90.0, 90.0], 1: [90.1, 90.1], 2: [90.0, 90.0]}, best=0) == [2]


def test_of_single_values_nothing_can_be_told() -> None:
    assert tied_with({0: [90.0], 1: [10.0]}, best=0) == [1]
