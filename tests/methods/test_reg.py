"""Regression of the teacher's embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raydistill.methods.reg import Regression
from tests.methods.support import close, double_parts, single_step, tiny_setting


def test_mean_squared_error_of_the_heads_output() -> None:
    parts = double_parts(Regression(), tiny_setting())
    student = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    teacher = 1e4 * torch.randn(2, 7, dtype=torch.float64)
    loss = Regression().loss(single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}), parts).total
    error = student @ parts["head"].weight.T + parts["head"].bias - teacher
    close(loss, (error**2).sum() / 14)
    close(torch.autograd.grad(loss, student)[0], 2 / 14 * error @ parts["head"].weight)


def test_same_embedding_costs_nothing() -> None:
    embedding = {0: {"embedding": torch.randn(2, 7)}}
    parts: Any = nn.ModuleDict({"head": nn.Identity()})
    assert Regression().loss(single_step(embedding, embedding), parts).total == 0
