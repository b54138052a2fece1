"""AT against RepDistiller (code) and torchdistill (paper)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raydistill.functional import at_loss
from raydistill.methods.at import AT
from tests.golden import golden
from tests.methods.levels import check_against_public_code, each_precision, maps_of
from tests.methods.support import close, single_step, tensor


@each_precision
def test_public_code(dtype: torch.dtype, rtol: float, atol: float) -> None:
    check_against_public_code(at_loss, "AT", dtype, rtol, atol)


@each_precision
def test_distance_of_the_paper(dtype: torch.dtype, rtol: float, atol: float) -> None:
    maps, opinions = golden("repdistiller_losses.npz"), golden("second_opinions.npz")
    student = tensor(maps["AT/in/s0"], dtype).requires_grad_()
    loss = at_loss([student], [tensor(maps["AT/in/t0"], dtype)], variant="paper")
    loss.backward()
    close(loss, opinions["torchdistill/AT_paper_level0/f64/loss"], rtol=rtol)
    close(student.grad, opinions["torchdistill/AT_paper_level0/f64/grad_s0"], rtol=rtol, atol=atol)


def test_method_divides_the_papers_distance_by_twice_the_places() -> None:
    names = [f"features/{stage}" for stage in (1, 2)]
    students, teachers = maps_of((4, 8, 8), (6, 4, 4)), maps_of((5, 8, 8), (7, 2, 2), seed=1)
    step = single_step({0: dict(zip(names, students, strict=True))}, {0: dict(zip(names, teachers, strict=True))})
    per_level = [at_loss([s], [t], variant="paper") for s, t in zip(students, teachers, strict=True)]
    close(AT(stages=(1, 2)).loss(step, {}).total, per_level[0] / 128 + per_level[1] / 8)
    close(AT(stages=(1, 2), variant="code").loss(step, {}).total, at_loss(students, teachers))


def test_attention_to_one_place_each() -> None:
    """Unit vectors on different places: squared distance 2, distance sqrt(2)."""
    student, teacher = torch.zeros(3, 2, 2, 2), torch.zeros(3, 5, 2, 2)
    student[:, :, 0, 0], teacher[:, 0, 1, 1] = -3.0, 7.0
    close(at_loss([student], [teacher]), 2 / 4, rtol=1e-6)
    close(at_loss([student], [teacher], variant="paper"), 2**0.5, rtol=1e-6)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_same_attention_costs_nothing_and_scale_does_not_count(variant: Any) -> None:
    (maps,) = maps_of((4, 3, 3))
    close(at_loss([-5 * maps], [maps], variant=variant), 0.0, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_dead_and_equal_maps_have_finite_gradients(variant: Any) -> None:
    (teacher,) = maps_of((4, 3, 3), batch=2)
    for student in (torch.zeros_like(teacher), teacher.clone()):
        student.requires_grad_()
        at_loss([student], [teacher], variant=variant).backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
