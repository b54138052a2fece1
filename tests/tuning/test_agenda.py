from __future__ import annotations

from pathlib import Path
from typing import Any

from raydistill.tune_config import BudgetConfig
from raydistill.tuning.agenda import Agenda
from raydistill.tuning.budget import Budget
from raydistill.tuning.suggesting import Suggestions
from tests.conftest import digits

SPACE = {"train.optimizer.lr": {"grid": [0.1, 0.2, 0.3]}}


def agenda(budget: BudgetConfig | None = None, **tune: Any) -> Agenda:
    experiment = digits(Path("unused"), seed=5, tune={"space": SPACE, "samples": 1} | tune)
    return Agenda(experiment, Suggestions(experiment), Budget(budget or BudgetConfig(), gpus_per_trial=0.5))


def test_the_best_are_trained_anew_with_seeds_of_their_own_once_all_trials_are_over() -> None:
    made = agenda(repeats=2, finalists=2)
    jobs = [made.take() for _ in range(4)]
    assert [job.folder for job in jobs] == [f"trials/{number:04d}" for number in range(4)]
    for job, (metric, whole) in zip(jobs, [(50.0, True), (90.0, False), (None, True), (60.0, True)], strict=True):
        assert not made.ready()
        made.end(job.number, metric, whole=whole)
    finals = []
    while made.ready():
        finals.append(made.take())
    assert [(job.trial, job.seed, job.searching) for job in finals] == [
        (3, 6, False),
        (3, 7, False),
        (0, 6, False),
        (0, 7, False),
    ]
    assert [job.number for job in finals] == [4, 5, 6, 7]
    assert finals[0].values == {"train.optimizer.lr": 0.3}
    assert not made.finished()
    for job in finals:
        made.end(job.number, 1.0, whole=True)
    assert made.finished()


def test_a_spent_budget_begins_no_trial() -> None:
    made = agenda(BudgetConfig(epochs=3))
    made.take()
    made.budget.note(0, 2, 10.0)
    assert made.ready()
    made.take()
    made.budget.note(1, 1, 10.0)
    assert not made.ready()
    assert not made.finished()  # two are under way
    made.end(0, 1.0, whole=False)
    made.end(1, 1.0, whole=False)
    assert made.finished()


def test_hours_of_clock_and_gpus_are_budgets_too() -> None:
    budget = Budget(BudgetConfig(gpu_hours=1.0), gpus_per_trial=0.5)
    budget.note(0, 1, 3600.0)
    assert budget.gpu_hours == 0.5 and not budget.is_spent
    budget.note(1, 1, 3600.0)
    assert budget.is_spent
    assert Budget(BudgetConfig(hours=2.0), gpus_per_trial=0.0, hours_before=2.1).is_spent
