"""CC against RepDistiller (code) and KD-Zoo and torchdistill (paper), and its heads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.functional import cc_loss
from raydistill.methods.cc import CC
from tests.golden import golden
from tests.methods.pairs import LOSSES, SECOND, check_pair, each_precision, random_rows
from tests.methods.support import close, double_parts, single_step, tensor, tiny_setting


def paper(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    return cc_loss(student, teacher, variant="paper", **options)


def norm(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
    """What torchdistill returns: |K_s - K_t|_F / B^2, without the square."""
    return paper(student, teacher, **options).sqrt() / len(student)


@each_precision
def test_public_code(dtype: torch.dtype) -> None:
    check_pair(cc_loss, "CC", dtype)


@each_precision
def test_gaussian_kernel_of_kd_zoo(dtype: torch.dtype) -> None:
    check_pair(paper, "kdzoo/CC_g0.4_P2", dtype, file=SECOND, inputs=(LOSSES, "CC"))


def test_bilinear_kernel_of_torchdistill() -> None:
    def bilinear(student: Tensor, teacher: Tensor) -> Tensor:
        return norm(student, teacher, kernel="bilinear")

    check_pair(bilinear, "torchdistill/CCKD_bilinear", file=SECOND, inputs=(LOSSES, "CC"))


def test_gaussian_kernel_of_torchdistill() -> None:
    """It takes rows as they are; these have length 1 in float32. Our gradient has no part along a row."""
    values, name = golden(SECOND), "torchdistill/CCKD_gaussian_g0.4_p2"
    student = tensor(values[f"{name}/in/s0"]).requires_grad_()
    loss = norm(student, tensor(values[f"{name}/in/t0"]))
    loss.backward()
    close(loss, values[f"{name}/f64/loss"], rtol=1e-6)
    rows, expected = student.detach(), tensor(values[f"{name}/f64/grad_s0"])
    close(student.grad, expected - rows * (rows * expected).sum(1, keepdim=True), rtol=1e-5, atol=1e-9)


def test_kernel_approaches_the_gaussian_with_its_order() -> None:
    student, teacher = (torch.nn.functional.normalize(random_rows(6, 4, seed=seed).detach()) for seed in (0, 1))
    exact = [(-0.4 * torch.cdist(rows, rows).square()).exp() for rows in (student, teacher)]
    expected = (exact[0] - exact[1]).square().mean()
    close(paper(student, teacher, order=20), expected)
    assert not torch.isclose(paper(student, teacher, order=1), expected, rtol=1e-2)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_equal_embeddings_cost_nothing(variant: Any) -> None:
    rows = random_rows(4, 3).detach()
    close(cc_loss(rows, rows, variant=variant), 0.0)
    assert cc_loss(rows.roll(1, 0), rows, variant=variant) > 1e-4


def test_only_the_paper_variant_ignores_the_order_of_the_batch() -> None:
    student, teacher, order = random_rows(6, 4), random_rows(6, 4, seed=1), torch.tensor([3, 0, 5, 1, 4, 2])
    close(paper(student[order], teacher[order]), paper(student, teacher).detach())
    assert not torch.isclose(cc_loss(student[order], teacher[order]), cc_loss(student, teacher))


def test_heads_are_the_public_codes_linear_embeddings() -> None:
    values = golden("repdistiller_adapters.npz")
    setting = replace(tiny_setting(), student={"embedding": (12,)}, teachers=({"embedding": (12,)},))
    method = CC(dimension=8)
    parts = double_parts(method, setting)
    stored = {name: tensor(values[f"LinearEmbed/param/linear.{name}"]) for name in ("weight", "bias")}
    parts["student"].load_state_dict(stored)
    embedding = tensor(values["LinearEmbed/in/0"])
    step = single_step({0: {"embedding": embedding}}, {0: {"embedding": embedding}})
    expected = cc_loss(tensor(values["LinearEmbed/f64/out0"]), parts["teacher"](embedding))
    close(method.loss(step, parts).total, expected)
