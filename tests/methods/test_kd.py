"""Distillation of logits, against RepDistiller's DistillKL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from raydistill.functional import kd_loss
from raydistill.methods.base import Step
from raydistill.methods.kd import KD
from raydistill.methods.objective import Objective
from tests.golden import golden
from tests.methods.support import close, single_step, tensor, tiny_setting


@pytest.mark.parametrize(("name", "temperature"), [("KD", 4.0), ("KD_T1", 1.0)])
@pytest.mark.parametrize(("kind", "dtype", "rtol"), [("f64", torch.float64, 1e-9), ("f32", torch.float32, 1e-5)])
def test_public_code(name: str, temperature: float, kind: str, dtype: torch.dtype, rtol: float) -> None:
    values = golden("repdistiller_losses.npz")
    student = tensor(values[f"{name}/in/s0"], dtype).requires_grad_()
    loss = kd_loss(student, tensor(values[f"{name}/in/t0"], dtype), temperature=temperature)
    loss.backward()
    close(loss, values[f"{name}/f64/loss"], rtol=rtol)
    close(student.grad, values[f"{name}/f64/grad_s0"], rtol=rtol, atol=1e-12 if kind == "f64" else 1e-7)


def test_same_logits_and_shifted_logits_cost_nothing() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    close(kd_loss(logits + 3, logits, temperature=2.0), 0.0, atol=1e-12)


def test_standardised_logits_may_differ_in_range() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64)
    step = single_step({0: {"logits": 7 * logits}}, {0: {"logits": logits}})
    close(KD(standardise=True).loss(step, {}).total, 0.0, atol=1e-9)
    assert KD().loss(step, {}).total > 0.1


def test_half_precision_is_raised_under_autocast() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kd_loss(student, teacher, temperature=4.0)
    assert loss.dtype == torch.float32
    close(loss, kd_loss(student, teacher, temperature=4.0), rtol=0)


def ensemble_step(teachers: list[torch.Tensor], student: torch.Tensor) -> Step:
    outputs = tuple({0: {"logits": teacher}} for teacher in teachers)
    return Step(views={}, student={0: {"logits": student}}, teachers=outputs, columns={})


def ensemble(count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(count + 1, 4, 5, generator=generator, dtype=torch.float64) * 3
    return list(made[1:]), made[0].requires_grad_()


@pytest.mark.parametrize("standardise", [False, True])
def test_one_teacher_is_plain_kd_either_way(standardise: bool) -> None:
    (teacher,), student = ensemble(1)
    plain = single_step({0: {"logits": student}}, {0: {"logits": teacher}})
    expected = KD(standardise=standardise).loss(plain, {})
    loss = KD(standardise=standardise, ensemble="sum").loss(plain, {})
    assert torch.equal(loss.total, expected.total)
    assert not loss.terms
    if not standardise:
        assert torch.equal(loss.total, kd_loss(student, teacher, temperature=4.0))


def test_mean_of_an_ensemble_is_one_target() -> None:
    teachers, student = ensemble(3)
    target = torch.stack([(teacher / 4.0).softmax(1) for teacher in teachers]).mean(0)
    loss = KD().loss(ensemble_step(teachers, student), {})
    expected = 16 * (target * (target.log() - (student / 4.0).log_softmax(1))).sum() / 4
    close(loss.total, expected)
    assert not loss.terms


def test_sum_of_an_ensemble_adds_the_losses_and_reports_them() -> None:
    teachers, student = ensemble(3)
    loss = KD(ensemble="sum").loss(ensemble_step(teachers, student), {})
    for number, teacher in enumerate(teachers):
        close(loss.terms[str(number)], kd_loss(student, teacher, temperature=4.0).detach())
    close(loss.total, sum(value.detach() for value in loss.terms.values()))


def test_sum_pulls_as_mean_times_the_number_of_teachers() -> None:
    teachers, student = ensemble(3)
    step = ensemble_step(teachers, student)
    mean, added = (
        torch.autograd.grad(method.loss(step, {}).total, student)[0] for method in (KD(), KD(ensemble="sum"))
    )
    close(added, 3 * mean)


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_ensemble_is_joined_by_the_objective(how: Any) -> None:
    setting = tiny_setting()
    objective = Objective({"kd": KD(ensemble=how, weight=0.5)}, replace(setting, teachers=setting.teachers * 3))
    teachers, student = ensemble(3)
    step = ensemble_step(teachers, student)
    close(objective(step).total, 0.5 * KD(ensemble=how).loss(step, {}).total)


@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("temperature", [1e-4, 4.0])
def test_confident_ensembles_are_finite(how: Any, temperature: float) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1.0, -1e4]], requires_grad=True)
    teachers = [torch.tensor([[-1e4, 1e4, 0.0]] * 2), torch.tensor([[0.0, -1e4, 1e4]] * 2)]
    loss = KD(ensemble=how, temperature=temperature).loss(ensemble_step(teachers, student), {}).total
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
