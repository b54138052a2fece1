"""DIST against torchdistill, and where there is nothing to correlate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydistill.functional import dist_loss
from tests.methods.pairs import LOSSES, SECOND, check_pair, each_precision, random_rows
from tests.methods.support import close


@each_precision
@pytest.mark.parametrize(("name", "weight", "temperature"), [("DIST_b1_g1_tau1", 1, 1), ("DIST_b2_g2_tau4", 2, 4)])
def test_public_code(name: str, weight: float, temperature: float, dtype: torch.dtype) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return dist_loss(student, teacher, beta=weight, gamma=weight, temperature=temperature)

    check_pair(loss, f"torchdistill/{name}", dtype, file=SECOND, inputs=(LOSSES, "KD"))


def test_relations_against_corrcoef() -> None:
    student, teacher = random_rows(6, 4).detach(), random_rows(6, 4, seed=1).detach()
    left, right = (student / 2.0).softmax(1), (teacher / 2.0).softmax(1)
    rows = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(left, right, strict=True)])
    columns = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(left.T, right.T, strict=True)])
    close(dist_loss(student, teacher, beta=3.0, gamma=0.0, temperature=2.0), 4 * 3 * (1 - rows.mean()))
    close(dist_loss(student, teacher, beta=0.0, gamma=5.0, temperature=2.0), 4 * 5 * (1 - columns.mean()))


def test_equal_logits_cost_nothing() -> None:
    logits = random_rows(6, 5).detach()
    close(dist_loss(logits + 1.0, logits, beta=1.0, gamma=1.0, temperature=4.0), 0.0)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("classes", [5, 7, 1000])
def test_constant_student_has_no_correlation_and_no_gradient(value: float, classes: int) -> None:
    student = torch.full((4, classes), value, requires_grad=True)
    loss = dist_loss(student, torch.randn(4, classes), beta=1.0, gamma=1.0, temperature=1.0)
    loss.backward()
    close(loss, 2.0, rtol=1e-6)
    assert student.grad is not None
    assert (student.grad == 0).all()


@pytest.mark.parametrize("temperature", [1e-4, 1.0])
def test_saturated_probabilities_are_finite(temperature: float) -> None:
    student = (1e4 * random_rows(2, 5, dtype=torch.float32)).detach().requires_grad_()
    loss = dist_loss(student, random_rows(2, 5, seed=1).float().detach(), beta=1.0, gamma=1.0, temperature=temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
