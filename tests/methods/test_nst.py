"""NST against RepDistiller, and against the kernel written out for all pairs of channels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from raydistill.functional import nst_loss
from tests.methods.levels import check_against_public_code, each_precision, maps_of
from tests.methods.support import close


@each_precision
def test_public_code(dtype: torch.dtype, rtol: float, atol: float) -> None:
    check_against_public_code(nst_loss, "NST", dtype, rtol, atol)


def written_out(student: Tensor, teacher: Tensor) -> Tensor:
    """The discrepancy with every pair of channels."""
    rows = [F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher)]

    def kernel(left: Tensor, right: Tensor) -> Tensor:
        return (left[:, :, None] * right[:, None]).sum(dim=3).square().mean()

    return kernel(rows[0], rows[0]) + kernel(rows[1], rows[1]) - 2 * kernel(rows[0], rows[1])


@pytest.mark.parametrize("channels", [(3, 4), (20, 4), (4, 20)])
def test_both_products_agree_with_all_pairs(channels: tuple[int, int]) -> None:
    """Nine places: fewer and more of them than channels."""
    (student,), (teacher,) = maps_of((channels[0], 3, 3)), maps_of((channels[1], 3, 3), seed=1)
    given, again = student.clone().requires_grad_(), student.clone().requires_grad_()
    found, expected = nst_loss([given], [teacher]), written_out(again, teacher)
    close(found, expected, rtol=1e-10)
    for value, leaf in ((found, given), (expected, again)):
        value.backward()
        assert leaf.grad is not None
    close(given.grad, again.grad, rtol=1e-8)


@pytest.mark.parametrize("channels", [3, 12])
def test_order_sign_and_scale_of_channels_do_not_count(channels: int) -> None:
    (maps,) = maps_of((channels, 3, 3))
    close(nst_loss([-5 * maps.flip(1)], [maps]), 0.0, atol=1e-12)


@pytest.mark.parametrize("channels", [3, 12])
def test_dead_channels_have_finite_gradients(channels: int) -> None:
    (student,), (teacher,) = maps_of((channels, 3, 3), batch=2), maps_of((channels, 3, 3), batch=2, seed=1)
    student[:, 0] = 0
    student.requires_grad_()
    nst_loss([student], [teacher]).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 10
    assert student.grad.abs().max() > 0


def test_memory_does_not_grow_with_pairs_of_channels() -> None:
    """No product inside is larger than a Gram matrix of the smaller kind."""
    largest = 0

    def note(value: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, value.numel())
        return value

    (student,), (teacher,) = maps_of((64, 4, 4), batch=2), maps_of((64, 4, 4), batch=2, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        nst_loss([student.requires_grad_()], [teacher])
    assert largest == student.numel()
