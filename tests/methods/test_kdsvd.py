"""KDSVD against RepDistiller, where the signs of singular vectors are what they were there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from raydistill.errors import ConfigError
from raydistill.functional import kdsvd_loss
from raydistill.methods import kdsvd
from raydistill.methods.kdsvd import KDSVD, fix_sign, main_directions
from tests.golden import golden
from tests.methods.levels import check_against_public_code, each_precision, maps_of, stored_maps
from tests.methods.support import close, tensor, tiny_setting


@each_precision
def test_public_code(dtype: torch.dtype, rtol: float, atol: float, monkeypatch: pytest.MonkeyPatch) -> None:
    values = golden("repdistiller_losses.npz")
    stored = iter([tensor(values[f"KDSVD/f64/v_t{level}"], dtype) for level in range(3)])

    def stored_sign(directions: Tensor) -> Tensor:
        return directions * (directions * next(stored)).sum(dim=1, keepdim=True).sign()

    monkeypatch.setattr(kdsvd, "fix_sign", stored_sign)
    check_against_public_code(kdsvd_loss, "KDSVD", dtype, rtol, 50 * atol)


def test_fixed_signs_give_the_public_codes_value_for_those_signs() -> None:
    """On these maps they turn the middle level's vectors against the first's, and not against the last's."""
    values = golden("repdistiller_losses.npz")
    students, teachers = stored_maps(values, "KDSVD", torch.float64)
    turned = values["KDSVD/f64/losses_when_teacher_level1_sign_flipped"]
    close(kdsvd_loss(students[:2], teachers[:2]), turned[0])
    close(kdsvd_loss(students[1:], teachers[1:]), values["KDSVD/f64/losses"][1])
    close(kdsvd_loss(students, teachers), turned[0] + values["KDSVD/f64/losses"][1])


@pytest.mark.parametrize("shape", [(3, 3, 3), (9, 2, 2)])
@pytest.mark.parametrize("count", [1, 3])
def test_gradient_of_directions_is_that_of_the_decomposition(shape: tuple[int, ...], count: int) -> None:
    (maps,) = maps_of(shape)
    given, again = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    found, _ = main_directions(given, count)
    expected = torch.linalg.svd(again.flatten(2).mT, full_matrices=False).Vh.mT[..., :count]
    close(found, expected.detach())
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert given.grad is not None
    assert again.grad is not None
    close(given.grad, again.grad, rtol=1e-7, atol=1e-9)


def test_same_maps_cost_nothing() -> None:
    maps = maps_of((5, 4, 4), (6, 3, 3), (7, 2, 2))
    close(kdsvd_loss([-3 * values for values in maps], maps, k=2), 0.0, atol=1e-12)


def test_largest_component_is_positive() -> None:
    columns = torch.tensor([[[0.2, -0.9], [-0.7, 0.1], [0.1, 0.3]]])
    assert torch.equal(fix_sign(columns), columns * torch.tensor([-1.0, -1.0]))
    assert torch.equal(fix_sign(-columns), fix_sign(columns))


def dull_maps() -> Iterator[Tensor]:
    """Maps whose singular values are equal or zero."""
    yield torch.zeros(2, 6, 3, 3)
    yield torch.ones(2, 6, 3, 3)
    yield torch.randn(2, 6, 3, 3) * (torch.arange(6) > 3)[:, None, None]
    yield torch.eye(9).reshape(1, 9, 3, 3)[:, :6].expand(2, -1, -1, -1).clone()


@pytest.mark.parametrize("student", dull_maps())
def test_dull_maps_have_finite_gradients(student: Tensor) -> None:
    teachers = [torch.rand(2, 6, 3, 3), torch.zeros(2, 6, 3, 3)]
    student.requires_grad_()
    loss = kdsvd_loss([student, student + torch.rand_like(student)], teachers)
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_unequal_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^methods\.kdsvd\.stages: equally many channels .* stage 1 .* 4 and 5$"):
        KDSVD().check(tiny_setting())


def test_too_many_directions_are_refused() -> None:
    setting = tiny_setting(same_maps=True)
    KDSVD(k=4).check(setting)
    with pytest.raises(ConfigError, match=r"^methods\.kdsvd\.k: 5 is too many.* stage 1 have 4; lower it$"):
        KDSVD(k=5).check(setting)
    with pytest.raises(ConfigError, match=r"^methods\.kdsvd\.k: 5 is too many.* stage 3 have 4; lower it$"):
        KDSVD(k=5, stages=(2, 3)).check(setting)


def test_one_stage_has_no_neighbour() -> None:
    with pytest.raises(ValidationError, match="at least two entries"):
        KDSVD(stages=(2,))
