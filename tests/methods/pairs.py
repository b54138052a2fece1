"""Comparison of a loss of two matrices with its stored value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden import golden
from tests.methods.support import close, tensor

LOSSES, SECOND = "repdistiller_losses.npz", "second_opinions.npz"

TOLERANCES = {torch.float64: (1e-9, 1e-12), torch.float32: (1e-5, 2e-6)}
"""Relative; absolute, as a part of the largest expected value."""
each_precision = pytest.mark.parametrize("dtype", TOLERANCES, ids=["float64", "float32"])


def check_pair(
    loss: Callable[[Tensor, Tensor], Tensor],
    name: str,
    dtype: torch.dtype = torch.float64,
    *,
    file: str = LOSSES,
    inputs: tuple[str, str] | None = None,
    rows: slice | list[int] = slice(None),
) -> None:
    """Compare value and gradient (of ``rows``) with those stored in ``file``; ``inputs``: another file and name."""
    rtol, _ = TOLERANCES[dtype]
    values = golden(file)
    input_file, input_name = inputs or (file, name)
    stored = golden(input_file)
    student = tensor(stored[f"{input_name}/in/s0"], dtype).requires_grad_()
    found = loss(student, tensor(stored[f"{input_name}/in/t0"], dtype))
    assert found.dtype == dtype
    assert found.shape == ()
    found.backward()
    close(found, values[f"{name}/f64/loss"], rtol=rtol)
    check_gradient(student.grad, values[f"{name}/f64/grad_s0"], rows)


def check_gradient(found: Tensor | None, expected: Any, rows: slice | list[int] = slice(None)) -> None:
    """Compare ``rows`` of a gradient with stored values, within its precision."""
    assert found is not None
    rtol, atol = TOLERANCES[found.dtype]
    close(found[rows], expected[rows], rtol=rtol, atol=max(atol * abs(expected[rows]).max(), 1e-15))


def random_rows(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that take gradients."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()
