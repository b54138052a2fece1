"""The front: by its definition, and without latencies that differ by noise alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydistill.reporting.pareto import candidates, fronts, pareto_front, swept_costs
from raydistill.reporting.runs import load_run
from tests.reporting.made_sweeps import make_search, sweep_of

numbers = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan])


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Costs no more and is no worse, and is better in one of the two; false for missing values."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(st.lists(st.tuples(numbers, numbers), max_size=9))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    costs, metric = [cost for cost, _ in points], [value for _, value in points]
    known = [not any(map(math.isnan, point)) for point in points]
    expected = [
        known[place] and not any(_dominates(other, point) for other in points) for place, point in enumerate(points)
    ]
    assert pareto_front(costs, metric).tolist() == expected
    assert pareto_front(costs, [-value for value in metric], "min").tolist() == expected


def test_the_cheapest_and_the_best_are_on_it() -> None:
    assert pareto_front([1, 2, 3, 4], [50, 49, 60, 60]).tolist() == [True, False, True, False]


def test_a_student_is_on_the_front_once_for_its_latency(tmp_path: Path) -> None:
    sweep = load_run(make_search(tmp_path / "sweep")).sweep
    assert sweep is not None
    trials = candidates(sweep)
    assert set(trials["status"]) == {"completed"}
    assert (trials.groupby("student.model")["latency_ms"].nunique() == 1).all()
    front = fronts(sweep)
    assert front["student.model"].tolist() == ["resnet8", "resnet14", "resnet20"]
    assert set(front["fronts"]) == {"parameters, latency"}
    best = trials.loc[trials.groupby("student.model")["val/top1"].idxmax()]
    assert set(front["trial"]) == set(best["trial"])


@pytest.mark.parametrize("parameters", [["5", "5"], ["", ""]])
def test_no_front_without_students_of_several_sizes(tmp_path: Path, parameters: list[str]) -> None:
    sweep = sweep_of(tmp_path / "sweep", {"a": {"uniform": [0, 1]}}, {"a": ["1", "2"], "parameters": parameters})
    assert swept_costs(candidates(sweep)) == []
    assert fronts(sweep).empty
