"""Stored maps of several levels, and the comparison of a loss of them with its stored value and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden import golden
from tests.methods.support import close, tensor

each_precision = pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 2e-5, 1e-6)], ids=["float64", "float32"]
)


def stored_maps(values: dict[str, Any], name: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Maps of the student, which take gradients, and of the teacher."""

    def side(letter: str) -> list[Tensor]:
        count = sum(key.startswith(f"{name}/in/{letter}") for key in values)
        return [tensor(values[f"{name}/in/{letter}{level}"], dtype) for level in range(count)]

    return [maps.requires_grad_() for maps in side("s")], side("t")


def check_against_public_code(
    loss: Callable[[list[Tensor], list[Tensor]], Tensor],
    name: str,
    dtype: torch.dtype,
    rtol: float,
    atol: float,
    *,
    file: str = "repdistiller_losses.npz",
) -> None:
    """Compare value and gradients with those stored under ``name``."""
    values = golden(file)
    students, teachers = stored_maps(values, name, dtype)
    found = loss(students, teachers)
    assert found.dtype == dtype
    assert found.shape == ()
    found.backward()
    close(found, values[f"{name}/f64/loss"], rtol=rtol)
    for level, student in enumerate(students):
        expected = values[f"{name}/f64/grad_s{level}"]
        close(student.grad, expected, rtol=rtol, atol=atol * abs(expected).max())


def maps_of(*shapes: tuple[int, ...], seed: int = 0, batch: int = 4) -> list[Tensor]:
    """Random maps of these shapes in float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
