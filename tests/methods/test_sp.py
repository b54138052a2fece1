"""SP against RepDistiller, and its size at unlike batch sizes."""

from __future__ import annotations

import pytest
import torch

from raydistill.functional import sp_loss
from raydistill.methods.sp import SP
from tests.methods.levels import check_against_public_code, each_precision, maps_of
from tests.methods.support import close, single_step


@each_precision
def test_public_code(dtype: torch.dtype, rtol: float, atol: float) -> None:
    check_against_public_code(sp_loss, "SP", dtype, rtol, atol)


def test_same_similarities_cost_nothing() -> None:
    """G is the same for turned and scaled features."""
    (maps,) = maps_of((2, 3, 3), batch=5)
    turned = 3 * maps.flatten(1) @ torch.linalg.qr(torch.randn(18, 18, dtype=torch.float64)).Q
    close(sp_loss([turned], [maps]), 0.0, atol=1e-12)


def test_orthogonal_images_against_equal_ones() -> None:
    """Rows e_i against rows 1 / sqrt(B): each differs by 2 - 2 / sqrt(B)."""
    student, teacher = torch.eye(4)[:, :, None, None], torch.ones(4, 3, 2, 2)
    close(sp_loss([student], [teacher]), 4 * (2 - 2 / 4**0.5) / 16, rtol=1e-6)


@pytest.mark.parametrize(("variant", "factor"), [("paper", 8 / 64), ("code", 1.0)])
def test_weight_is_for_a_batch_of_64(variant: str, factor: float) -> None:
    (student,), (teacher,) = maps_of((4, 3, 3), batch=8), maps_of((5, 2, 2), batch=8, seed=1)
    step = single_step({0: {"features/3": student}}, {0: {"features/3": teacher}})
    found = SP.model_validate({"variant": variant}).loss(step, {}).total
    close(found, factor * sp_loss([student], [teacher]))


def test_size_of_the_papers_variant_does_not_depend_on_the_batch() -> None:
    """Orthogonal images against equal ones again: (2 - 2 / sqrt(B)) / 64, where the raw form has 1 / B."""
    for batch in (16, 256):
        student, teacher = torch.eye(batch)[:, :, None, None], torch.ones(batch, 3, 2, 2)
        step = single_step({0: {"features/3": student}}, {0: {"features/3": teacher}})
        close(SP().loss(step, {}).total, (2 - 2 / batch**0.5) / 64, rtol=1e-5)


def test_image_without_any_activation_sends_no_gradient() -> None:
    (student,), (teacher,) = maps_of((2, 2, 2), batch=2), maps_of((2, 2, 2), batch=2, seed=1)
    student[0] = 0
    student.requires_grad_()
    sp_loss([student], [teacher]).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 10
