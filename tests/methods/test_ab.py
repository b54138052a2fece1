"""Activation boundaries, against RepDistiller's ABLoss and connectors and torchdistill's AltActTransferLoss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.errors import ConfigError
from raydistill.functional import ab_loss
from raydistill.methods.ab import AB, connector
from tests.golden import golden
from tests.methods.adapters import adapters, cotangent, fill
from tests.methods.support import close, single_step, tensor, tiny_setting

LEVELS = range(3)


def inputs(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    values = golden("repdistiller_losses.npz")
    students = [tensor(values[f"AB/in/s{level}"], dtype).requires_grad_() for level in LEVELS]
    return students, [tensor(values[f"AB/in/t{level}"], dtype) for level in LEVELS]


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-5, 1e-7)])
def test_public_code(dtype: torch.dtype, rtol: float, atol: float) -> None:
    values = golden("repdistiller_losses.npz")
    students, teachers = inputs(dtype)
    loss = ab_loss(students, teachers)
    loss.backward()
    close(loss, values["AB/f64/loss"], rtol=rtol)
    for level in LEVELS:
        close(students[level].grad, values[f"AB/f64/grad_s{level}"], rtol=rtol, atol=atol)
        alone = ab_loss([students[level]], [teachers[level]]) * 2.0 ** (level - 2)
        close(alone, values["AB/f64/losses"][level], rtol=rtol)


def test_second_public_code_is_the_same_without_its_scale() -> None:
    values = golden("second_opinions.npz")
    students, teachers = inputs(torch.float64)
    loss = ab_loss(students, teachers) * 1000 / 3
    loss.backward()
    close(loss, values["torchdistill/AltAct_margin1_mean/f64/loss"])
    for level in LEVELS:
        close(students[level].grad, values[f"torchdistill/AltAct_margin1_mean/f64/grad_s{level}"])


def test_cost_begins_inside_the_margin() -> None:
    teacher = torch.tensor([[[[0.1, -0.1, 0.1, -0.1]]]])
    student = torch.tensor([[[[2.5, -2.5, 1.0, -3.0]]]])
    close(ab_loss([student], [teacher], margin=2.0), 3 / 1000 * 1.0, rtol=1e-6)
    assert ab_loss([student], [teacher], margin=1.0) == 0.0


@pytest.mark.parametrize("factor", [1.0, 1e4])
def test_equal_maps_beyond_the_margin_cost_nothing(factor: float) -> None:
    maps = torch.randn(2, 3, 4, 4)
    maps = maps + maps.sign()
    assert ab_loss([factor * maps], [factor * maps]) == 0.0


def test_constant_maps_are_finite() -> None:
    constant = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = ab_loss([constant], [torch.full((2, 3, 4, 4), 1e4)])
    loss.backward()
    close(loss, 3 / 1000 * 48, rtol=1e-6)
    assert constant.grad is not None
    assert torch.isfinite(constant.grad).all()


CONNECTORS = [("Connector", 0), ("Connector", 1), ("Connector", 2), ("ConnectorV2", 0), ("ConnectorV2", 1)]


@pytest.mark.parametrize(("name", "number"), CONNECTORS)
def test_public_connectors(name: str, number: int) -> None:
    """Connector for equal and unequal sizes and, as number 1, equal shapes; ConnectorV2 for equal sizes."""
    values, prefix = adapters(), f"connectors.{number}."
    layers = ("conv", "bn") if name == "Connector" else ("0", "1")
    maps = tensor(values[f"{name}/in/{number}"]).requires_grad_()
    shapes: Any = maps.shape[1:], values[f"{name}/f64/out{number}"].shape[1:]
    module = connector(*map(tuple, shapes)).double()
    for layer, key in zip(module, layers, strict=False):
        fill(layer, f"{name}/param/{prefix}{key}")
    found = module(maps)
    (found * cotangent(found, number)).sum().backward()
    close(found, values[f"{name}/f64/out{number}"])
    close(maps.grad, values[f"{name}/f64/grad_in{number}"])
    assert bool(len(module)) == any(stored.startswith(f"{name}/param/{prefix}") for stored in values)
    for layer, key in zip(module, layers, strict=False):
        for parameter, value in layer.named_parameters():
            close(value.grad, values[f"{name}/f64/grad_param/{prefix}{key}.{parameter}"], atol=1e-10)


def test_loss_goes_through_the_connectors() -> None:
    setting, method = tiny_setting(), AB(stages=(2, 3), margin=0.5)
    parts: Any = method.parts(setting)
    students = [torch.randn(4, *setting.student[f"preact/{stage}"]) for stage in (2, 3)]
    teachers = [torch.randn(4, *setting.teacher[f"preact/{stage}"]) for stage in (2, 3)]
    names = ("preact/2", "preact/3")
    step = single_step({0: dict(zip(names, students, strict=True))}, {0: dict(zip(names, teachers, strict=True))})
    connected = [connect(maps) for connect, maps in zip(parts["connectors"], students, strict=True)]
    close(method.loss(step, parts).total, ab_loss(connected, teachers, margin=0.5))


def test_maps_that_no_convolution_connects_are_refused() -> None:
    setting = tiny_setting()
    larger = replace(setting, teachers=({**setting.teacher, "preact/3": (9, 5, 5)},))
    with pytest.raises(ConfigError, match=r"^methods\.ab\.stages: .*'preact/3' of 2x2 to the teacher's 5x5"):
        AB().check(larger)
    AB(stages=(1, 2)).check(larger)
    without = {name: shape for name, shape in setting.teacher.items() if not name.startswith("preact")}
    with pytest.raises(ConfigError, match=r"^methods\.ab\.teacher_stages: .*no map 'preact/1'"):
        AB().check(replace(setting, teachers=(without,)))
