"""SSKD against torchdistill's, part by part, and its selection, its views and its stage before distillation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.functional import kd_loss, selective_kd_loss
from raydistill.methods.base import Draw, Step
from raydistill.methods.sskd import SSKD, turned_similarities
from tests.golden import golden
from tests.methods.pairs import SECOND, TOLERANCES, check_gradient, each_precision, random_rows
from tests.methods.support import close, double_parts, make_step, single_step, tensor, tiny_setting

IDENTITY: Any = nn.ModuleDict({"student": nn.Identity(), "teacher": nn.Identity()})
PARTS = {
    "kl": {"turned_weight": 0.0, "similarity_weight": 0.0},
    "ss": {"kd_weight": 0.0, "turned_weight": 0.0},
    "tf": {"kd_weight": 0.0, "similarity_weight": 0.0},
}


def stored_step(dtype: torch.dtype) -> tuple[Step, dict[str, Tensor]]:
    """The stored inputs, where the four views of an image follow each other, as a step whose heads have run."""
    values = golden(SECOND)
    names = {"s0": "logits", "s1": "embedding", "t0": "logits", "t1": "embedding"}
    inputs = {key: tensor(values[f"torchdistill/SSKD/in/{key}"], dtype).requires_grad_() for key in names}

    def side(letter: str) -> dict[int, dict[str, Tensor]]:
        return {view: {names[key]: inputs[key][view::4] for key in (f"{letter}0", f"{letter}1")} for view in range(4)}

    return single_step(side("s"), side("t"), columns={"label": tensor(values["SSKD_target"])}), inputs


@each_precision
@pytest.mark.parametrize("name", [*PARTS, "total"])
def test_public_code(name: str, dtype: torch.dtype) -> None:
    values, stored = golden(SECOND), "torchdistill/SSKD" + ("" if name == "total" else f"_{name}")
    step, inputs = stored_step(dtype)
    if name == "total":  # its cross-entropy has the weight 1
        loss = SSKD().loss(step, IDENTITY).total + F.cross_entropy(inputs["s0"][::4], step.columns["label"])
    else:
        ones = {"kd_weight": 1.0, "turned_weight": 1.0, "similarity_weight": 1.0}
        loss = SSKD(**(ones | PARTS[name])).loss(step, IDENTITY).total
    loss.backward()
    close(loss, values[f"{stored}/f64/loss"], rtol=TOLERANCES[dtype][0])
    for key in ("s0", "s1"):
        check_gradient(inputs[key].grad, values[f"{stored}/f64/grad_{key}"])


@each_precision
def test_stage_is_torchdistills_auxiliary_task(dtype: torch.dtype) -> None:
    values = golden(SECOND)
    step, inputs = stored_step(dtype)
    stage = SSKD().pretraining(IDENTITY, nn.Identity())
    loss = stage.loss(step).total
    loss.backward()
    close(loss, values["torchdistill/AuxSSKD/f64/loss"], rtol=TOLERANCES[dtype][0])
    check_gradient(inputs["t1"].grad, values["torchdistill/AuxSSKD/f64/grad_s0"])


def test_stage_trains_the_teachers_head_alone() -> None:
    method, setting = SSKD(pretrain_epochs=3, pretrain_lr=None), tiny_setting()
    parts = double_parts(method, setting)
    stage = method.pretraining(parts, nn.Identity())
    assert (stage.epochs, stage.lr, stage.trains) == (3, None, (parts["teacher"],))
    assert not stage.needs.student
    assert not any(parameter.requires_grad for parameter in parts["teacher"].parameters())
    parts["teacher"].requires_grad_(True)  # as the stage does
    step = make_step(stage.needs, 0, slice(8), setting=setting)
    before = stage.loss(step).total
    before.backward()
    for parameter in parts["teacher"].parameters():
        assert parameter.grad is not None
        parameter.data.sub_(0.1 * parameter.grad)
    assert stage.loss(step).total < before
    assert all(parameter.grad is None for parameter in parts["student"].parameters())


def test_views_are_view_0_turned() -> None:
    needs = SSKD().needs()
    assert needs.views == (0, 1, 2, 3)
    assert needs.draws == {turns: Draw(of=0, turns=turns) for turns in (1, 2, 3)}
    assert SSKD().pretraining(IDENTITY, nn.Identity()).needs | needs == needs


def test_similarities_find_the_upright_image_of_a_head_that_ignores_turns() -> None:
    heads = random_rows(5, 1, 3).detach().expand(-1, 4, -1)
    similarities, right = turned_similarities(heads)
    assert similarities.shape == (15, 5)
    assert torch.equal(similarities.argmax(1), right)
    close(similarities.gather(1, right[:, None]), torch.ones(15, 1))


@pytest.mark.parametrize(
    ("keep", "rows"), [(0.0, [1, 4]), (0.34, [1, 4, 3]), (0.5, [1, 4, 3]), (0.67, [0, 1, 3, 4]), (1.0, [0, 1, 2, 3, 4])]
)
def test_selection_keeps_the_right_and_the_least_wrong(keep: float, rows: list[int]) -> None:
    """The label 0 ranks 2nd, 0th, 3rd, 1st and 0th."""
    teacher = torch.tensor(
        [[2.0, 3, 4, 1], [9, 1, 2, 3], [0, 1, 2, 3], [2, 0, 3, 1], [5, 1, 2, 3]], dtype=torch.float64
    )
    student, labels = random_rows(5, 4), torch.zeros(5, dtype=torch.int64)
    loss = selective_kd_loss(student, teacher, labels, temperature=2.0, keep=keep)
    close(loss, kd_loss(student[rows], teacher[rows], temperature=2.0).detach())
    loss.backward()
    assert student.grad is not None
    assert student.grad.abs().sum(1).nonzero().flatten().tolist() == sorted(rows)


def test_nothing_left_to_select_is_zero() -> None:
    teacher, labels = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0])
    student = torch.randn(2, 2, requires_grad=True)
    loss = selective_kd_loss(student, teacher, labels, temperature=1.0, keep=0.0)
    loss.backward()
    close(loss, 0.0)
    assert student.grad is not None
    assert (student.grad == 0).all()


def test_same_networks_cost_nothing() -> None:
    step, _ = stored_step(torch.float64)
    same = replace(step, student=step.teacher)
    close(SSKD().loss(same, IDENTITY).total, 0.0)
    assert SSKD().loss(step, IDENTITY).total > 1.0
