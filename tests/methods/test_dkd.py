"""DKD against mdistiller, and its relation to KD."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.functional import dkd_loss, kd_loss
from raydistill.methods.dkd import DKD
from tests.golden import golden
from tests.methods.pairs import SECOND, check_pair, each_precision, random_rows
from tests.methods.support import close, single_step, tensor

LABELS = torch.tensor([0, 4, 2, 2])


@each_precision
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("DKD_a1_b8_T4", {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}),
        ("DKD_tckd_T4", {"alpha": 1.0, "beta": 0.0, "temperature": 4.0}),
        ("DKD_nckd_T4", {"alpha": 0.0, "beta": 1.0, "temperature": 4.0}),
        ("DKD_a1_b8_T1", {"alpha": 1.0, "beta": 8.0, "temperature": 1.0}),
    ],
)
def test_public_code(name: str, values: dict[str, float], dtype: torch.dtype) -> None:
    labels = tensor(golden(SECOND)["DKD_target"])

    def loss(student: Tensor, teacher: Tensor) -> Tensor:
        return dkd_loss(student, teacher, labels, **values)  # type: ignore[arg-type]

    inputs = SECOND, "mdistiller/DKD_a1_b8_T4"
    check_pair(loss, f"mdistiller/{name}", dtype, file=SECOND, inputs=inputs)


def test_kd_is_its_sum_with_the_teachers_doubt_as_beta() -> None:
    """KD = KL of the label + (1 - p_t of the label) * KL among the others, image by image (Zhao et al., Eq. 5)."""
    student, teacher = random_rows(1, 5), random_rows(1, 5, seed=1).detach()
    doubt = 1.0 - (teacher / 3.0).softmax(1)[0, 4].item()
    close(
        dkd_loss(student, teacher, torch.tensor([4]), alpha=1.0, beta=doubt, temperature=3.0),
        kd_loss(student, teacher, temperature=3.0).detach(),
    )


def test_shifted_logits_cost_nothing() -> None:
    logits = random_rows(4, 5).detach()
    close(dkd_loss(logits + 3.0, logits, LABELS, alpha=1.0, beta=8.0, temperature=2.0), 0.0)


@pytest.mark.parametrize("temperature", [1e-4, 1.0])
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_logits(scale: float, temperature: float) -> None:
    student = random_rows(4, 5, dtype=torch.float32)
    teacher = random_rows(4, 5, seed=1).float().detach() * scale
    loss = dkd_loss(student * scale, teacher, LABELS, alpha=1.0, beta=8.0, temperature=temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_labels_that_the_softmax_has_lost_still_pull() -> None:
    """The label's log-probability against all others stays exact where the probability itself is 0."""
    student = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[200.0, 0.0, 0.0]])
    loss = dkd_loss(student, teacher, torch.tensor([0]), alpha=1.0, beta=0.0, temperature=1.0)
    close(loss, 200.0, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "epoch", "share"), [(20, 0, 1 / 20), (20, 9, 0.5), (20, 40, 1.0), (0, 0, 1.0)])
def test_warm_up(warmup: int, epoch: int, share: float) -> None:
    outputs: Any = ({0: {"logits": random_rows(4, 5, seed=seed).detach()}} for seed in (0, 1))
    step = replace(single_step(*outputs, columns={"label": LABELS}), epoch=epoch)
    full = DKD(warmup=0).loss(step, {}).total
    close(DKD(warmup=warmup).loss(step, {}).total, share * full)
