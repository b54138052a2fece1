"""Flow of solution procedure, against RepDistiller's FSP, torchdistill's flow matrices and sums written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from raydistill.errors import ConfigError
from raydistill.functional import fsp_loss
from raydistill.methods.fsp import FSP, flow_matrices
from tests.golden import golden
from tests.methods.support import close, tensor, tiny_setting

LEVELS = range(4)


def inputs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    values = golden("repdistiller_losses.npz")
    students = [tensor(values[f"FSP/in/s{level}"], dtype).requires_grad_() for level in LEVELS]
    return students, [tensor(values[f"FSP/in/t{level}"], dtype) for level in LEVELS]


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-5, 1e-7)])
def test_public_code(dtype: torch.dtype, rtol: float, atol: float) -> None:
    values = golden("repdistiller_losses.npz")
    students, teachers = inputs(dtype)
    loss = fsp_loss(students, teachers)
    loss.backward()
    close(loss, values["FSP/f64/loss"], rtol=rtol)
    for level in LEVELS:
        close(students[level].grad, values[f"FSP/f64/grad_s{level}"], rtol=rtol, atol=atol)
    for level in range(3):
        pair = fsp_loss(students[level : level + 2], teachers[level : level + 2])
        close(pair, values["FSP/f64/losses"][level], rtol=rtol)


def test_max_pooled_flows_of_a_second_public_code() -> None:
    """torchdistill sums the norms of the columns, which neither variant does, of the ``paper`` variant's matrices."""
    values = golden("second_opinions.npz")
    students, teachers = inputs(torch.float64)
    flows = [flow_matrices(maps, F.adaptive_max_pool2d) for maps in (students, teachers)]
    total = sum((left - right).norm(dim=1).sum() / 4 for left, right in zip(*flows, strict=True))
    assert isinstance(total, Tensor)
    total.backward()
    close(total, values["torchdistill/FSP/f64/loss"])
    for level in LEVELS:
        close(students[level].grad, values[f"torchdistill/FSP/f64/grad_s{level}"])


def test_paper_sums_over_the_entries() -> None:
    students, teachers = (torch.randn(2, 2, 3, 2, 2, dtype=torch.float64) for _ in range(2))
    expected = 0.0
    for image in range(2):
        for row in range(3):
            for column in range(3):
                student, teacher = (
                    (maps[0, image, row] * maps[1, image, column]).sum() / 4 for maps in (students, teachers)
                )
                expected += float(student - teacher) ** 2 / 2
    close(fsp_loss(list(students), list(teachers), variant="paper"), expected)
    close(fsp_loss(list(students), list(teachers), variant="code"), expected / 9)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_equal_maps_cost_nothing_and_constant_ones_are_finite(variant: Any, scale: float) -> None:
    maps = [scale * torch.randn(2, 3, 4, 4), scale * torch.randn(2, 5, 2, 2)]
    assert fsp_loss(maps, maps, variant=variant) == 0.0
    constant = [torch.full_like(level, scale).requires_grad_() for level in maps]
    loss = fsp_loss(constant, maps, variant=variant)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(level.grad is not None and torch.isfinite(level.grad).all() for level in constant)


def test_unequal_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^methods\.fsp\.stages: .*'features/1' has 4 channels, .* 5;"):
        FSP().check(tiny_setting())
    setting = tiny_setting(same_maps=True)
    FSP().check(setting)
    FSP(stages=(0, 2)).check(replace(setting, teachers=({**tiny_setting().teacher, "features/2": (6, 5, 5)},)))
