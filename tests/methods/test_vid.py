"""VID against RepDistiller, loss and regressors."""

from __future__ import annotations

import math

import pytest
import torch

from raydistill.functional import vid_loss
from raydistill.methods.adapters import mean_regressor
from raydistill.methods.maps import same_size
from raydistill.methods.vid import VID
from tests.golden import golden
from tests.methods.levels import each_precision, maps_of, stored_maps
from tests.methods.support import close, double_parts, single_step, tensor, tiny_setting


@each_precision
@pytest.mark.parametrize("level", [0, 1, 2])
def test_public_code(level: int, dtype: torch.dtype, rtol: float, atol: float) -> None:
    """Level 1: the student's map is larger, level 2: the teacher's."""
    values, name = golden("repdistiller_losses.npz"), f"VID{level}"
    (student,), (teacher,) = stored_maps(values, name, dtype)
    regressor = mean_regressor(student.shape[1], teacher.shape[1])
    regressor.load_state_dict({key: tensor(values[f"{name}/param/regressor.{key}"]) for key in regressor.state_dict()})
    regressor.to(dtype)
    log_scale = tensor(values[f"{name}/param/log_scale"], dtype).requires_grad_()
    loss = vid_loss(regressor(same_size(student, teacher)[0]), teacher, log_scale)
    loss.backward()
    close(loss, values[f"{name}/f64/loss"], rtol=rtol)
    close(student.grad, values[f"{name}/f64/grad_s0"], rtol=rtol, atol=atol)
    close(log_scale.grad, values[f"{name}/f64/grad_param/log_scale"], rtol=rtol, atol=atol)
    for key, parameter in regressor.named_parameters():
        close(parameter.grad, values[f"{name}/f64/grad_param/regressor.{key}"], rtol=rtol, atol=atol)


def test_variance_starts_at_five() -> None:
    parts = double_parts(VID(), tiny_setting())
    assert [len(scales) for scales in parts["log_scales"]] == [5, 7, 9]
    start = float(golden("repdistiller_losses.npz")["VID/log_scale_init_f64"])
    for scales in parts["log_scales"]:
        close(scales, torch.full_like(scales, start), rtol=1e-6)
    enormous = VID(initial_variance=1e6).parts(tiny_setting())["log_scales"]
    close(enormous[0], torch.full((5,), 1e6), rtol=1e-6)


def test_exact_prediction_costs_half_the_logarithm_of_the_variance() -> None:
    (maps,) = maps_of((3, 2, 2))
    log_scale = torch.tensor([-1e4, 0.0, 1e4], dtype=torch.float64)
    variances = [1e-5, math.log(2) + 1e-5, 1e4]
    close(vid_loss(maps, maps, log_scale), sum(0.5 * math.log(value) for value in variances) / 3, rtol=1e-6)


def test_method_sums_its_stages_and_pools_before_regressing() -> None:
    method = VID(stages=(0, 3), teacher_stages=(2, 3))
    parts = double_parts(method, tiny_setting())
    students, teachers = maps_of((4, 8, 8), (8, 2, 2)), maps_of((7, 4, 4), (9, 2, 2), seed=1)
    step = single_step(
        {0: {"features/0": students[0], "features/3": students[1]}},
        {0: {"features/2": teachers[0], "features/3": teachers[1]}},
    )
    pooled = torch.nn.functional.avg_pool2d(students[0], 2)
    expected = sum(
        vid_loss(parts["regressors"][level](given), teachers[level], parts["log_scales"][level])
        for level, given in enumerate((pooled, students[1]))
    )
    close(method.loss(step, parts).total, expected)
