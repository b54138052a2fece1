"""RKD against RepDistiller, mdistiller, torchdistill and KD-Zoo, and where points coincide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.functional import rkd_loss
from raydistill.methods.rkd import RKD
from tests.methods.pairs import LOSSES, SECOND, check_pair, each_precision, random_rows
from tests.methods.support import close, single_step

VARIANTS = ["paper", "code"]
DUPLICATES, OTHERS = [1, 3], [0, 2, 4, 5]


@each_precision
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("name", "weights"), [("RKD", (25, 50)), ("RKD_d", (1, 0)), ("RKD_a", (0, 1))])
def test_public_code(name: str, weights: Any, variant: Any, dtype: torch.dtype) -> None:
    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return rkd_loss(student, teacher, distance_weight=weights[0], angle_weight=weights[1], variant=variant)

    check_pair(loss, name, dtype)


@pytest.mark.parametrize("name", ["mdistiller/RKD", "torchdistill/RKD_25_50", "kdzoo/RKD_25_50"])
def test_other_public_code(name: str) -> None:
    check_pair(rkd_loss, name, file=SECOND, inputs=(LOSSES, "RKD"))


@each_precision
@pytest.mark.parametrize("rows", [DUPLICATES, OTHERS], ids=["duplicates", "others"])
def test_public_code_with_duplicates(rows: list[int], dtype: torch.dtype) -> None:
    check_pair(rkd_loss, "RKD_dup", dtype, rows=rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_duplicates_have_the_same_value_but_no_huge_gradient(variant: Any) -> None:
    student = random_rows(6, 4).detach()
    student[3] = student[1]
    student.requires_grad_()
    teacher = random_rows(6, 5, seed=1).detach()
    loss = rkd_loss(student, teacher, variant=variant)
    close(loss, rkd_loss(student, teacher).detach())
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert (student.grad.abs().max() > 1e6) == (variant == "code")


def test_mirrored_rotated_shifted_and_scaled_points_have_the_same_relations() -> None:
    points = random_rows(7, 5).detach()
    turned, _ = torch.linalg.qr(random_rows(5, 5, seed=1).detach())
    close(rkd_loss(3.0 * points @ turned + 2.0, points), 0.0, atol=1e-12)
    assert rkd_loss(points * torch.arange(1.0, 6.0), points) > 0.1


def test_closed_form_of_a_triangle() -> None:
    """A right triangle (3, 4, 5) against an equilateral one; 1 and cos 60 stand for the latter."""
    right = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    equal = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]], dtype=torch.float64)
    distances = sum(2 * 0.5 * (side / 4 - 1) ** 2 for side in (3, 4, 5)) / 9
    angles = sum(2 * 0.5 * (cosine - 0.5) ** 2 for cosine in (0.0, 3 / 5, 4 / 5)) / 27
    close(rkd_loss(right, equal), 25 * distances + 50 * angles)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_two_points_are_alike_at_any_scale(variant: Any, scale: float) -> None:
    """Two points have one distance, which is its own mean."""
    student = random_rows(2, 4, dtype=torch.float32)
    loss = rkd_loss(student * scale, random_rows(2, 3, seed=1, dtype=torch.float32).detach(), variant=variant)
    loss.backward()
    close(loss, 0.0, atol=1e-6)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_constant_student_sends_no_gradient() -> None:
    student = torch.full((5, 4), 0.3, requires_grad=True)
    step = single_step({0: {"embedding": student}}, {0: {"embedding": torch.randn(5, 3)}})
    loss = RKD().loss(step, {}).total
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert (student.grad == 0).all()
