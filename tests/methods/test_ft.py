"""Factor transfer, against RepDistiller's FactorTransfer, Paraphraser and Translator and torchdistill's FTLoss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from raydistill.functional import ft_loss
from raydistill.methods.factors import paraphraser, translator
from raydistill.methods.ft import FT
from tests.golden import golden
from tests.methods.adapters import adapters, cotangent, fill
from tests.methods.support import close, single_step, tensor, tiny_setting

STORED = {
    "FT": ("repdistiller_losses.npz", "FT", "code", 1),
    "FT_p2": ("repdistiller_losses.npz", "FT", "code", 2),
    "torchdistill/FT_p1": ("second_opinions.npz", "torchdistill/FT_p1", "paper", 1),
    "torchdistill/FT_p2": ("second_opinions.npz", "torchdistill/FT_p1", "paper", 2),
}
"""Stored name -> file, name of the inputs, variant and order."""


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-5, 1e-7)])
@pytest.mark.parametrize("name", STORED)
def test_public_code(name: str, dtype: torch.dtype, rtol: float, atol: float) -> None:
    file, inputs, variant, p = STORED[name]
    values: Any = golden(file)
    student = tensor(values[f"{inputs}/in/s0"], dtype).requires_grad_()
    loss = ft_loss(student, tensor(values[f"{inputs}/in/t0"], dtype), p=p, variant=variant)  # type: ignore[arg-type]
    loss.backward()
    close(loss, values[f"{name}/f64/loss"], rtol=rtol)
    close(student.grad, values[f"{name}/f64/grad_s0"], rtol=rtol, atol=atol)


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("p", [1, 2])
def test_the_scale_of_a_factor_does_not_matter(variant: Any, p: Any) -> None:
    factor = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for scale in (1.0, 1e4, 1e-4):
        student = (scale * factor).requires_grad_()
        loss = ft_loss(student, factor, p=p, variant=variant)
        close(loss, 0.0, atol=1e-12)
        loss.backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()


def test_opposite_factors_are_a_diameter_apart() -> None:
    factor = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    close(ft_loss(-factor, factor, p=2, variant="paper"), 2.0)
    close(ft_loss(-factor, factor, p=2, variant="code"), 0.0)


def test_public_paraphraser() -> None:
    values, name = adapters(), "Paraphraser_k0.5"
    module: Any = paraphraser(6, 3).double()
    for part in ("encoder", "decoder"):
        for number, block in enumerate(module[part]):
            fill(block[0], f"{name}/param/{part}.{3 * number}")
    maps = tensor(values[f"{name}/in/0"]).requires_grad_()
    factor = module["encoder"](maps)
    outputs = factor, module["decoder"](factor)
    sum((found * cotangent(found, number)).sum() for number, found in enumerate(outputs)).backward()
    for number, found in enumerate(outputs):
        close(found, values[f"{name}/f64/out{number}"])
    close(maps.grad, values[f"{name}/f64/grad_in0"])
    for part in ("encoder", "decoder"):
        for number, block in enumerate(module[part]):
            for key, value in block[0].named_parameters():
                close(value.grad, values[f"{name}/f64/grad_param/{part}.{3 * number}.{key}"], atol=1e-11)


def test_public_translator() -> None:
    values, name = adapters(), "Translator_k0.5"
    module: Any = translator(4, 3).double()
    layers = [
        (block[place], f"encoder.{3 * number + place}") for number, block in enumerate(module) for place in (0, 1)
    ]
    for layer, prefix in layers:
        fill(layer, f"{name}/param/{prefix}")
    maps = tensor(values[f"{name}/in/0"]).requires_grad_()
    found = module(maps)
    (found * cotangent(found, 0)).sum().backward()
    close(found, values[f"{name}/f64/out0"])
    close(maps.grad, values[f"{name}/f64/grad_in0"], atol=1e-10)
    for layer, prefix in layers:
        for key, value in layer.named_parameters():
            close(value.grad, values[f"{name}/f64/grad_param/{prefix}.{key}"], atol=1e-10)


def test_the_paraphraser_is_frozen_but_in_its_stage() -> None:
    setting, method = tiny_setting(), FT(rate=0.25)
    parts: Any = method.parts(setting)
    assert not any(value.requires_grad for value in parts["paraphraser"].parameters())
    assert parts["paraphraser"]["encoder"][2][0].out_channels == int(9 * 0.25)
    stage = method.pretraining(parts, torch.nn.Identity())
    assert stage is not None
    assert stage.trains == (parts["paraphraser"],)
    assert (dict(stage.needs.student), dict(stage.needs.teacher)) == ({}, {0: frozenset({"features/3"})})


def test_the_stage_reconstructs_the_teachers_maps() -> None:
    method = FT()
    parts: Any = method.parts(tiny_setting())
    stage = method.pretraining(parts, torch.nn.Identity())
    maps = torch.randn(4, 9, 2, 2)
    step = single_step({}, {0: {"features/3": maps}})
    found = parts["paraphraser"]["decoder"](parts["paraphraser"]["encoder"](maps))
    assert stage is not None
    close(stage.loss(step).total, (found - maps).square().mean(), rtol=1e-6)


def test_a_weight_of_zero_needs_no_stage() -> None:
    method = FT(weight=0.0)
    assert method.pretraining(method.parts(tiny_setting()), torch.nn.Identity()) is None
