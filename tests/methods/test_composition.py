"""Any weighted sum of methods works, shares the student's forward passes and reports each term."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from raydistill.methods.base import Method
from raydistill.methods.objective import Objective
from raydistill.methods.registry import method_class
from raydistill.training.distiller import Distiller
from tests.methods.cases import SMALL, build_cases, setting_of
from tests.methods.support import MAPS, TinyNetwork, make_step, tiny_setting

KD = method_class("kd")(weight=0.5)
PAIRS = [("crd", "kd"), ("crd", "pkt"), ("crd", "protocpc"), ("cocord", "kd")]


class Counting(TinyNetwork):
    """Counts its forward passes."""

    passes = 0

    def forward(self, images: Tensor, outputs: Iterable[str] = ("logits", "embedding")) -> dict[str, Tensor]:
        self.passes += 1
        return super().forward(images, outputs)


def small(name: str) -> Method:
    return method_class(name)(**SMALL.get(name, {}))


@pytest.mark.parametrize("method", build_cases().values(), ids=build_cases())
def test_a_sum_with_kd_is_the_sum(method: Method) -> None:
    setting = setting_of(method)
    both = Objective({"x": method, "kd": KD}, setting).double()
    alone = {"x": Objective({"x": method}, setting).double(), "kd": Objective({"kd": KD}, setting).double()}
    step = make_step(both.needs, 0, slice(8), setting=setting)
    total = both(step)
    separate = {name: objective(step) for name, objective in alone.items()}
    torch.testing.assert_close(total.total, separate["x"].total + separate["kd"].total)
    for name, loss in separate.items():
        torch.testing.assert_close(total.terms[name], loss.terms[name])


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_the_students_passes_are_shared(names: tuple[str, str]) -> None:
    torch.manual_seed(0)
    student = Counting(maps=MAPS).double()
    setting = tiny_setting(student)
    objective = Objective({name: small(name) for name in names}, setting).double()
    distiller = Distiller(student, objective)
    needs = objective.needs
    step = make_step(needs, 0, slice(8), setting=setting)
    images = {view: torch.randn(8, 12, dtype=torch.float64) for view in needs.views}
    student.passes = 0
    loss = distiller(type(step)(views=images, student={}, teachers=step.teachers, columns=step.columns))
    assert student.passes == len(needs.student)
    loss.total.backward()
    assert student.body.weight.grad is not None
    assert set(names) <= set(loss.terms)
    distiller.after_step(loss.carry)


def test_a_method_of_weight_zero_takes_no_part() -> None:
    objective = Objective({"kd": KD, "crd": method_class("crd")(weight=0.0, negatives=5)}, tiny_setting())
    assert "embedding" not in objective.needs.student[0]
    loss = objective(make_step(objective.needs, 0, slice(8)))
    assert set(loss.terms) == {"kd"}
    assert not any(value.requires_grad for value in objective.parameters())
