"""FitNet's loss and regressors against RepDistiller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from raydistill.errors import ConfigError
from raydistill.functional import hint_loss
from raydistill.methods.adapters import HintRegressor
from raydistill.methods.fitnet import FitNet
from raydistill.methods.stages import MapShape
from raydistill.methods.state import without_running_statistics
from tests.golden import golden
from tests.methods.levels import check_against_public_code, each_precision, maps_of
from tests.methods.support import close, double_parts, single_step, tensor, tiny_setting


@each_precision
def test_public_code(dtype: torch.dtype, rtol: float, atol: float) -> None:
    check_against_public_code(lambda s, t: hint_loss(s[0], t[0]), "FitNet", dtype, rtol, atol)


@each_precision
@pytest.mark.parametrize("kind", ["down2", "up2", "kernel", "same"])
def test_regressor_of_the_public_code(kind: str, dtype: torch.dtype, rtol: float, atol: float) -> None:
    """Its convolution has a bias, which the batch-norm behind takes away again."""
    values: dict[str, Any] = golden("repdistiller_adapters.npz")
    name = f"ConvReg_{kind}"
    student = tensor(values[f"{name}/in/0"], dtype).requires_grad_()
    expected = values[f"{name}/f64/out0"]
    regressor = HintRegressor(student.shape[1:], expected.shape[1:])  # type: ignore[arg-type]
    without_running_statistics(regressor)
    renamed = {"conv.weight": "conv.weight", "norm.weight": "bn.weight", "norm.bias": "bn.bias"}
    regressor.load_state_dict({own: tensor(values[f"{name}/param/{theirs}"]) for own, theirs in renamed.items()})
    found = regressor.to(dtype)(student)
    close(found, expected, rtol=rtol, atol=atol)
    found.backward(cotangent(found.shape).to(dtype))
    close(student.grad, values[f"{name}/f64/grad_in0"], rtol=rtol, atol=atol)
    for own, parameter in regressor.named_parameters():
        stored = values[f"{name}/f64/grad_param/{renamed[own]}"]
        close(parameter.grad, stored, rtol=rtol, atol=10 * atol)


def cotangent(shape: torch.Size) -> torch.Tensor:
    """The stored gradients are those of an inner product with these hashed numbers (golden/README)."""
    word = (1 << 32) - 1
    bits = (torch.arange(shape.numel()) * 2654435761 + 7777 * 2246822519 + 374761393) & word
    for shift, factor in ((15, 2246822519), (13, 3266489917), (16, 1)):
        bits = ((bits ^ (bits >> shift)) * factor) & word
    return ((bits.double() + 0.5) / 2**32 * 2 - 1).reshape(shape)


def test_exact_regression_costs_nothing() -> None:
    (maps,) = maps_of((3, 2, 2))
    close(hint_loss(maps, maps), 0.0)
    close(hint_loss(maps + 2, maps), 4.0)


def test_method_compares_the_regressed_map_with_the_teachers() -> None:
    method, setting = FitNet(stage=1, teacher_stage=2), tiny_setting()
    parts = double_parts(method, setting)
    (student,), (teacher,) = maps_of((4, 8, 8)), maps_of((7, 4, 4), seed=1)
    step = single_step({0: {"features/1": student}}, {0: {"features/2": teacher}})
    regressed = parts["regressor"](student)
    assert regressed.shape == teacher.shape
    close(method.loss(step, parts).total, (regressed - teacher).square().mean())


@pytest.mark.parametrize(
    ("student", "teacher", "fits"),
    [
        ((4, 8, 8), (9, 2, 2), True),
        ((4, 2, 2), (9, 4, 4), True),
        ((4, 6, 8), (9, 3, 4), True),
        ((4, 2, 2), (9, 8, 8), False),
        ((4, 2, 2), (9, 3, 3), False),
        ((4, 8, 2), (9, 4, 4), False),
    ],
)
def test_sizes_that_no_convolution_connects_are_refused(student: MapShape, teacher: MapShape, fits: bool) -> None:
    setting = replace(tiny_setting(), student={"features/2": student}, teachers=({"features/2": teacher},))
    if fits:
        FitNet().check(setting)
        regressor = FitNet().parts(setting)["regressor"]
        assert regressor(torch.randn(2, *student)).shape == (2, *teacher)
    else:
        with pytest.raises(ConfigError, match=r"^methods\.fitnet\.stage: no convolution leads from the student's"):
            FitNet().check(setting)
