"""Values at the edge of what training can meet: every method stays finite, with finite gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raydistill.methods.base import Loss, Method, Outputs, Step
from raydistill.methods.objective import Objective
from tests.methods.cases import build_cases, setting_of
from tests.methods.support import make_step, tiny_student

CASES = build_cases()
each_case = pytest.mark.parametrize("method", CASES.values(), ids=CASES.keys())
SHARP = {
    label: method for label, method in CASES.items() if any("temperature" in name for name in type(method).model_fields)
}

Change = Callable[[str, Tensor], Tensor]


def changed(step: Step, change: Change) -> Step:
    """The step with every output of both sides changed; the student's are leaves again."""

    def side(views: Mapping[int, Outputs], *, leaf: bool) -> dict[int, dict[str, Tensor]]:
        return {
            view: {name: change(name, value.detach()).requires_grad_(leaf) for name, value in outputs.items()}
            for view, outputs in views.items()
        }

    teachers = tuple(side(outputs, leaf=False) for outputs in step.teachers)
    return replace(step, student=side(step.student, leaf=True), teachers=teachers)


def run(method: Method, change: Change, *, dtype: torch.dtype = torch.float32) -> Loss:
    """Two steps on changed outputs, the second with a state that the first has left; checks that all is finite."""
    objective = Objective({"case": method}, setting_of(method)).to(dtype)
    student = tiny_student().to(dtype)
    for number in range(2):
        step = make_step(objective.needs, number, slice(8), setting=setting_of(method))
        step = changed(step, lambda name, value: change(name, value).to(dtype))
        step = replace(step, views={view: value.to(dtype) for view, value in step.views.items()})
        loss: Loss = objective(step)
        assert torch.isfinite(loss.total), loss.terms
        if loss.total.requires_grad:
            loss.total.backward()
        for outputs in step.student.values():
            for name, value in outputs.items():
                assert value.grad is None or torch.isfinite(value.grad).all(), name
        objective.after_step(student, loss.carry)
    assert all(torch.isfinite(value).all() for value in objective.state_dict().values())
    return loss


@each_case
def test_huge_outputs(method: Method) -> None:
    run(method, lambda name, value: value.sign() * 1e4 if name == "logits" else value * 1e3)


@each_case
def test_constant_outputs(method: Method) -> None:
    run(method, lambda name, value: torch.full_like(value, 0.5))


@each_case
def test_outputs_of_zeros(method: Method) -> None:
    run(method, lambda name, value: torch.zeros_like(value))


@pytest.mark.parametrize("method", SHARP.values(), ids=SHARP.keys())
def test_sharp_temperatures(method: Method) -> None:
    fields = [name for name in type(method).model_fields if "temperature" in name and "scale" not in name]
    sharp = method.model_copy(update={name: 1e-4 for name in fields if isinstance(getattr(method, name), float)})
    run(sharp, lambda name, value: value)


@each_case
def test_a_batch_of_one_class(method: Method) -> None:
    objective = Objective({"case": method}, setting_of(method)).double()
    step = make_step(objective.needs, 0, slice(8), setting=setting_of(method))
    if "label" in objective.needs.columns:
        step = replace(step, columns={**step.columns, "label": torch.zeros(8, dtype=torch.int64)})
    assert torch.isfinite(objective(step).total)
