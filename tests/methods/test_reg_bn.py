"""Regression of the teacher's embedding after a batch norm without parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.errors import ConfigError
from raydistill.methods.reg_bn import RegressionBN, standardise_dimensions
from tests.methods.support import close, double_parts, single_step, tiny_setting


def loss_of(student: Tensor, teacher: Tensor) -> Tensor:
    parts: Any = nn.ModuleDict({"head": nn.Identity()})
    return RegressionBN().loss(single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}), parts).total


def test_every_dimension_is_standardised() -> None:
    rows = 1e4 * torch.randn(8, 5, dtype=torch.float64) + 1e4
    made = standardise_dimensions(rows)
    close(made, (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt(), rtol=1e-9)


def test_value_and_gradient_of_the_head() -> None:
    parts = double_parts(RegressionBN(), tiny_setting())
    student, teacher = torch.randn(8, 6, dtype=torch.float64), torch.randn(8, 7, dtype=torch.float64)
    step = single_step({0: {"embedding": student}}, {0: {"embedding": teacher}})

    def plain(weight: Tensor) -> Tensor:
        both = [(x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in (student @ weight.T, teacher)]
        return (both[0] - both[1]).square().mean()

    loss, expected = RegressionBN().loss(step, parts).total, plain(parts["head"].weight)
    close(loss, expected)
    got, want = (torch.autograd.grad(value, parts["head"].weight)[0] for value in (loss, expected))
    close(got, want, rtol=1e-7)


def test_scale_and_shift_of_a_dimension_do_not_count() -> None:
    teacher = torch.randn(8, 5, dtype=torch.float64)
    student = teacher * torch.tensor([1.0, 2.0, 30.0, 5.0, 1e3]) + torch.arange(5.0)
    close(loss_of(student, teacher), 0.0, atol=1e-9)
    close(loss_of(-teacher, teacher), 4.0, rtol=1e-4)


def test_a_constant_embedding_is_zero_and_finite() -> None:
    student = torch.ones(2, 5, requires_grad=True)
    loss = loss_of(student, torch.tensor([[-1.0], [3.0]]).expand(2, 5))
    close(loss, 1.0, rtol=1e-3)
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_a_batch_of_one_is_refused() -> None:
    RegressionBN().check(replace(tiny_setting(), batch_size=2))
    with pytest.raises(ConfigError, match=r"^methods\.reg_bn: .*train\.batch_size of 2 or more$"):
        RegressionBN().check(replace(tiny_setting(), batch_size=1))
