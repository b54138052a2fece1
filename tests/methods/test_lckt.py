"""Optimal transport between batches against closed forms and linear programming."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from raydistill.functional import lckt_loss
from raydistill.methods.lckt import LCKT, transport_plan
from tests.methods.support import close, double_parts, single_step, tiny_setting


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """How fast Sinkhorn's iterations converge depends on the costs."""
    torch.manual_seed(0)


def rows(count: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, dtype=torch.float64)


def cost_of(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.normalize(student) @ F.normalize(teacher).T


def test_plan_of_two_by_two() -> None:
    """By symmetry P_00 = P_11, and P_00 / P_01 = e^{(C_01 - C_00) / epsilon}."""
    cost = torch.tensor([[0.1, 0.7], [0.7, 0.1]], dtype=torch.float64)
    ratio = math.exp(0.6 / 0.3)
    same, other = ratio / (1 + ratio) / 2, 1 / (1 + ratio) / 2
    close(transport_plan(cost, epsilon=0.3, iterations=1), [[same, other], [other, same]])


@pytest.mark.parametrize("shape", [(5, 5), (4, 7)])
def test_marginals_are_uniform_and_the_form_is_that_of_the_optimum(shape: tuple[int, int]) -> None:
    cost = torch.rand(shape, dtype=torch.float64)
    plan = transport_plan(cost, epsilon=0.1, iterations=500)
    close(plan.sum(1), np.full(shape[0], 1 / shape[0]))
    close(plan.sum(0), np.full(shape[1], 1 / shape[1]))
    # log P + C / epsilon is a sum of a row's and a column's number.
    potentials = plan.log() + cost / 0.1
    close(potentials - potentials[:1] - potentials[:, :1] + potentials[0, 0], np.zeros(shape), atol=1e-9)


def test_little_entropy_gives_the_best_assignment() -> None:
    student, teacher = rows(6), rows(6)
    cost = cost_of(student, teacher)
    best = cost.numpy()[linear_sum_assignment(cost.numpy())].mean()
    found = lckt_loss(student, teacher, epsilon=1e-3, iterations=5000).item()
    assert best - 1e-6 <= found <= best + 1e-3 * math.log(6)


def test_extreme_epsilon_and_embeddings_stay_finite() -> None:
    plan = transport_plan(torch.rand(4, 4) * 2, epsilon=1e-4, iterations=20)
    close(plan.sum(0), torch.full((4,), 0.25), rtol=1e-4)
    for student in (1e4 * torch.randn(2, 6), torch.ones(2, 6)):
        student.requires_grad_()
        loss = lckt_loss(student, torch.randn(2, 6), epsilon=1e-4, iterations=20)
        loss.backward()
        assert torch.isfinite(loss)
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_identical_embeddings_cost_nothing_in_any_order_and_at_any_length() -> None:
    teacher = torch.eye(6, dtype=torch.float64)[:4]
    for student in (teacher, teacher[[2, 0, 3, 1]], 5 * teacher):
        close(lckt_loss(student, teacher, epsilon=0.05, iterations=50), 0.0, atol=1e-7)
    close(lckt_loss(-teacher[:1], teacher[:1], epsilon=0.05, iterations=1), 2.0)


def test_distance_is_symmetric() -> None:
    student, teacher = rows(5), rows(5)
    there = lckt_loss(student, teacher, epsilon=0.1, iterations=1000)
    close(there, lckt_loss(teacher, student, epsilon=0.1, iterations=1000), rtol=1e-9)


def test_gradient_is_that_of_the_regularised_distance() -> None:
    student, teacher = rows(4).requires_grad_(), rows(4)

    def regularised(values: Tensor) -> Tensor:
        cost = cost_of(values, teacher)
        plan = transport_plan(cost, epsilon=0.2, iterations=300)
        return (plan * cost).sum() + 0.2 * (plan * plan.log()).sum()

    loss = lckt_loss(student, teacher, epsilon=0.2, iterations=300)
    got, want = (torch.autograd.grad(value, student)[0] for value in (loss, regularised(student)))
    close(got, want, rtol=1e-6, atol=1e-9)


def test_the_method_moves_the_heads_output() -> None:
    method = LCKT()
    parts = double_parts(method, tiny_setting())
    student, teacher = rows(8), rows(8, 7)
    total = method.loss(single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}), parts).total
    close(total, lckt_loss(parts["head"](student), teacher, epsilon=0.05, iterations=50))
