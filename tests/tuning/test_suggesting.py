from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.tuning.space import parse_space
from raydistill.tuning.suggesting import Earlier, Suggestions
from tests.conftest import digits

SPACE: dict[str, Any] = {
    "train.optimizer.name": {"choice": ["sgd", "adamw"]},
    "train.optimizer.momentum": {"uniform": [0.1, 0.9], "when": {"train.optimizer.name": "sgd"}},
    "train.optimizer.lr": {"loguniform": [0.001, 0.1]},
    "train.batch_size": {"logint": [16, 96]},
    "train.clip": {"qloguniform": [0.5, 8.0, 0.5]},
    "methods.again.weight": {"quniform": [0.5, 2.0, 0.5]},
    "methods.again": {"choice": [True, False]},
}
METHODS = {"ce": {}, "again": {"name": "ce"}}


def suggestions(space: dict[str, Any] = SPACE, earlier: list[Earlier] | None = None, **tune: Any) -> Suggestions:
    experiment = digits(Path("unused"), methods=METHODS, seed=tune.pop("seed", 0), tune={"space": space} | tune)
    return Suggestions(experiment, earlier or [])


def test_trial_0_is_the_experiment_as_it_stands() -> None:
    assert suggestions().ask(0) == {}


@pytest.mark.parametrize("search", ["random", "tpe", "bohb"])
def test_values_follow_from_the_seed_and_what_was_found(search: str) -> None:
    def asked(seed: int, results: list[float]) -> list[dict[str, Any]]:
        made = suggestions(search=search, seed=seed, samples=24)
        values = []
        for number in range(made.total):
            values.append(made.ask(number))
            made.report(number, 1, results[number % len(results)])
            made.tell(number, results[number % len(results)])
        return values

    first = asked(0, [1.0, 2.0, 3.0])
    assert first == asked(0, [1.0, 2.0, 3.0])
    assert first != asked(1, [1.0, 2.0, 3.0])
    assert (first == asked(0, [3.0, 2.0, 1.0])) == (search == "random")


@given(st.integers(0, 2**31 - 1))
def test_every_value_lies_in_its_range_and_counts(seed: int) -> None:
    made = suggestions(seed=seed, samples=4)
    for number in range(1, made.total):
        values = made.ask(number)
        assert ("train.optimizer.momentum" in values) == (values["train.optimizer.name"] == "sgd")
        assert ("methods.again.weight" in values) == values["methods.again"]
        assert 0.001 <= values["train.optimizer.lr"] <= 0.1
        assert isinstance(values["train.batch_size"], int) and 16 <= values["train.batch_size"] <= 96
        assert values["train.clip"] in [step / 2 for step in range(1, 17)]
        assert values.get("methods.again.weight", 0.5) in (0.5, 1.0, 1.5, 2.0)


def test_a_grid_is_tried_whole_without_what_does_not_count() -> None:
    space = {
        "train.optimizer.name": {"grid": ["sgd", "adamw"]},
        "train.optimizer.momentum": {"grid": [0.5, 0.9], "when": {"train.optimizer.name": "sgd"}},
    }
    made = suggestions(space, samples=1)
    assert [made.ask(number) for number in range(made.total)] == [
        {},
        {"train.optimizer.name": "sgd", "train.optimizer.momentum": 0.5},
        {"train.optimizer.name": "sgd", "train.optimizer.momentum": 0.9},
        {"train.optimizer.name": "adamw"},
    ]


def test_what_earlier_sweeps_found_good_comes_first() -> None:
    space = {"train.optimizer.lr": {"loguniform": [0.001, 0.1]}}
    earlier = [
        Earlier({}, 50.0),
        Earlier({"train.optimizer.lr": 0.01}, 80.0),
        Earlier({"train.optimizer.lr": 0.02}, 90.0),
        Earlier({"train.optimizer.lr": 0.5}, 99.0),  # outside of this space
    ]
    made = suggestions(space, earlier, samples=2, search="tpe")
    assert made.total == 1 + 2 + 2
    assert [made.ask(number) for number in (1, 2)] == [{"train.optimizer.lr": 0.02}, {"train.optimizer.lr": 0.01}]


def test_tpe_learns_from_earlier_sweeps() -> None:
    space = {"train.optimizer.lr": {"loguniform": [0.0001, 1.0]}}
    good = [Earlier({"train.optimizer.lr": 0.01 + 0.0001 * step}, 90.0) for step in range(10)]
    bad = [Earlier({"train.optimizer.lr": 0.5 + 0.01 * step}, 10.0) for step in range(20)]
    made = suggestions(space, good + bad, samples=20, search="tpe")
    drawn = [made.ask(number)["train.optimizer.lr"] for number in range(1, made.total)]
    assert sum(0.002 < rate < 0.05 for rate in drawn) > len(drawn) * 0.5  # chance alone gives 0.35


def test_bohb_believes_long_trials_as_soon_as_there_are_enough() -> None:
    """After one epoch small rates look best, after nine large ones do; each is found where it is all that is known."""
    space = {"train.optimizer.lr": {"loguniform": [0.0001, 1.0]}}

    def drawn(lengths: list[int]) -> list[float]:
        made = suggestions(space, samples=120, search="bohb")
        rates = []
        for number in range(1, made.total):
            rate = made.ask(number)["train.optimizer.lr"]
            rates.append(rate)
            for epochs in lengths if number % 4 == 0 else lengths[:1]:
                made.report(number, epochs, -rate if epochs == 1 else rate)
            made.tell(number, rate)
        return rates[60:]

    small, large = (sum(rate < 0.01 for rate in drawn(lengths)) / 60 for lengths in ([1], [1, 9]))
    assert small > 0.7  # chance alone gives 0.5
    assert large < 0.3


def test_bohb_leaves_a_third_to_chance_and_begins_with_chance() -> None:
    space = {"train.optimizer.lr": {"loguniform": [0.0001, 1.0]}}
    by_chance = suggestions(space, samples=90, search="random")
    made = suggestions(space, samples=90, search="bohb")
    rates = [made.ask(number)["train.optimizer.lr"] for number in range(1, 5)]
    assert rates == [by_chance.ask(number)["train.optimizer.lr"] for number in range(1, 5)]
    for number in range(1, 5):
        made.report(number, 9, -abs(rates[number - 1] - rates[0]))
    later = [made.ask(number)["train.optimizer.lr"] for number in range(5, 91)]
    chance = [by_chance.ask(number)["train.optimizer.lr"] for number in range(5, 91)]
    again = [rate for rate in later if rate in chance]
    assert again == chance[: len(again)]
    assert 0.2 < len(again) / len(later) < 0.47


def test_auto_stands_for_the_ranges_of_the_method() -> None:
    experiment = digits(Path("unused"), methods={"ce": {}, "old": {"name": "kd"}}, teacher={"model": "resnet14"},
                        tune={"space": {"methods.old": "auto"}})  # fmt: skip
    assert {entry.key for entry in parse_space(experiment)} == {"methods.old.temperature", "methods.old.weight"}
