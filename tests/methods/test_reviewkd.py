"""ReviewKD against mdistiller: the pyramid loss and the whole method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from raydistill.functional import hcl_loss
from raydistill.methods.base import Setting
from raydistill.methods.reviewkd import ReviewKD
from tests.golden import golden
from tests.methods.levels import check_against_public_code, each_precision, maps_of
from tests.methods.support import close, single_step, tensor, tiny_setting


@each_precision
def test_pyramid_loss(dtype: torch.dtype, rtol: float, atol: float) -> None:
    check_against_public_code(hcl_loss, "mdistiller/ReviewKD_hcl", dtype, rtol, atol, file="second_opinions.npz")


def test_pyramid_of_a_map_with_opposite_errors() -> None:
    """On 2 x 2 places the errors cancel in the mean, so that only the map itself counts, with 1 of 1.5."""
    teacher = torch.zeros(1, 1, 2, 2)
    student = torch.tensor([[[[3.0, -3.0], [-3.0, 3.0]]]])
    close(hcl_loss([student], [teacher]), 9 / 1.5)
    close(hcl_loss([student, student], [teacher, teacher]), 2 * 9 / 1.5)
    close(hcl_loss([teacher[:, :, :1, :1] + 2], [teacher[:, :, :1, :1]]), 4.0)


def test_same_maps_cost_nothing() -> None:
    maps = maps_of((3, 8, 8), (4, 2, 2))
    close(hcl_loss(maps, maps), 0.0)


STAGES = (1, 2, 3)


def public_setup(dtype: torch.dtype) -> tuple[ReviewKD, Any, dict[str, Any], dict[str, Any]]:
    values = {
        name.removeprefix("mdistiller/ReviewKD_full/"): value
        for name, value in golden("second_opinions.npz").items()
        if name.startswith("mdistiller/ReviewKD_full/")
    }
    students = {f"features/{stage}": tensor(values[f"in/s_f{stage}"], dtype) for stage in STAGES}
    teachers = {f"preact/{stage}": tensor(values[f"in/t_f{stage}"], dtype) for stage in STAGES}
    students["embedding"], teachers["embedding"] = (tensor(values[f"in/{side}_pooled"], dtype) for side in "st")
    shapes = [{name: tuple(value.shape[1:]) for name, value in side.items()} for side in (students, teachers)]
    setting: Setting = replace(tiny_setting(), student=shapes[0], teachers=(shapes[1],))
    method = ReviewKD(weight=0.6)
    parts: Any = method.parts(setting)
    renamed = {"reduce": "conv1", "expand": "conv2", "gates": "att_conv.0"}
    stored = {}
    for name in parts.state_dict():
        _, level, module, rest = name.split(".", 3)
        # There the deepest level is the first.
        stored[name] = tensor(values[f"param/abfs.{3 - int(level)}.{renamed[module]}.{rest}"])
    parts.load_state_dict(stored)
    return method, parts.to(dtype), values, {"students": students, "teachers": teachers}


@each_precision
@pytest.mark.parametrize("epoch", [5, 40])
def test_public_code(epoch: int, dtype: torch.dtype, rtol: float, atol: float) -> None:
    """There epochs are counted from 1."""
    method, parts, values, outputs = public_setup(dtype)
    for value in outputs["students"].values():
        value.requires_grad_()
    step = replace(single_step({0: outputs["students"]}, {0: outputs["teachers"]}), epoch=epoch - 1)
    loss = method.weight * method.loss(step, parts).total
    close(loss, values[f"f64/loss_epoch{epoch}"], rtol=rtol)
    if epoch == 40:
        loss.backward()
        for stage in STAGES:
            close(outputs["students"][f"features/{stage}"].grad, values[f"f64/grad_s_f{stage}"], rtol=rtol, atol=atol)
        close(outputs["students"]["embedding"].grad, values["f64/grad_s_pooled"], rtol=rtol, atol=atol)


@pytest.mark.parametrize(("warmup", "epoch", "share"), [(20, 0, 0.05), (20, 19, 1.0), (20, 300, 1.0), (0, 0, 1.0)])
def test_warm_up(warmup: int, epoch: int, share: float) -> None:
    _, parts, _, outputs = public_setup(torch.float64)
    step = replace(single_step({0: outputs["students"]}, {0: outputs["teachers"]}), epoch=epoch)
    loss = ReviewKD(warmup_epochs=warmup).loss(step, parts)
    close(loss.total, share * loss.terms["review"])


def test_maps_of_unlike_sizes_are_brought_to_the_teachers() -> None:
    method = ReviewKD(stages=(1, 3), teacher_stages=(2, 1), max_width=3, student_output="preact")
    setting = tiny_setting()
    parts: Any = method.parts(setting)
    students, teachers = maps_of((4, 8, 8), (8, 2, 2)), maps_of((7, 4, 4), (5, 8, 8), seed=1)
    step = single_step(
        {0: {"preact/1": students[0].float(), "preact/3": students[1].float(), "embedding": torch.randn(4, 6)}},
        {0: {"preact/2": teachers[0].float(), "preact/1": teachers[1].float(), "embedding": torch.randn(4, 7)}},
    )
    method.loss(step, parts).total.backward()
    assert parts["levels"][0].reduce[0].out_channels == 3
    assert all(value.grad is not None for value in parts.parameters())
