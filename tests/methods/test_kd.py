"""Distillation of logits, against RepDistiller's DistillKL."""

from __future__ import annotations

import pytest
import torch

from raydistill.functional import kd_loss
from raydistill.methods.kd import KD
from tests.golden import golden
from tests.methods.support import close, single_step, tensor


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
