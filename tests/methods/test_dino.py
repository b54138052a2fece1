"""DINO against its public code: loss with centre, head, schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.functional import dino_loss
from raydistill.methods.base import Draw
from raydistill.methods.crops import soft_cross_entropy
from raydistill.methods.dino import DINO
from raydistill.methods.heads import PrototypeHead
from raydistill.methods.prototypes import assignment_entropy
from raydistill.methods.schedules import cosine, warm_up
from tests.golden import golden
from tests.methods.support import close, make_step, single_step, tensor, tiny_setting, tiny_student

PRECISIONS = [(torch.float64, 1e-9, 1e-12), (torch.float32, 2e-5, 1e-5)]
TINY: dict[str, Any] = {"prototypes": 11, "hidden": 9, "bottleneck": 5, "local_crops": 2}


class StoredScores(nn.Module):
    """Stands for head or teacher: what comes in are the scores already."""

    def forward(self, given: Tensor | Sequence[Tensor], train_last_layer: bool = True) -> Tensor:
        return given if isinstance(given, Tensor) else torch.cat(list(given))

    def follow(self, network: nn.Module, head: nn.Module, momentum: float) -> None:
        pass


@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_three_calls_with_centre(dtype: torch.dtype, rtol: float, atol: float) -> None:
    values = golden("dino.npz")
    method = DINO(prototypes=10, local_crops=2, teacher_temperature=0.07, teacher_temperature_warmup=2)
    center = method.parts(tiny_setting()).to(dtype)["center"]
    parts: Any = nn.ModuleDict({"head": StoredScores(), "teacher": StoredScores(), "center": center})
    for call in range(3):
        student = tensor(values["loss/in/student_output"][call], dtype).requires_grad_()
        teacher = tensor(values["loss/in/teacher_output"][call], dtype)
        step = single_step(
            {view: {"embedding": rows} for view, rows in enumerate(student.chunk(4))},
            {},
            views=dict(enumerate(teacher.chunk(2))),
        )
        loss = method.loss(replace(step, epoch=call), parts)
        loss.total.backward()
        method.after_step(parts, nn.Identity(), loss.carry)
        stored = f"loss/f64/call{call}"
        close(loss.total, values[f"{stored}/loss"], rtol=rtol)
        close(student.grad, values[f"{stored}/grad_s"], rtol=rtol, atol=atol)
        close(parts["center"].value, values[f"{stored}/center_after"], rtol=rtol, atol=atol)


HEADS = {
    "n3": {"layers": 3},
    "n3_bn": {"layers": 3, "batch_norm": True},
    "n2": {"layers": 2},
    "n1": {"layers": 1},
    "n3_freeg0": {"layers": 3, "norm_last_layer": False},
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("dtype", "rtol", "atol"), PRECISIONS)
def test_head(name: str, dtype: torch.dtype, rtol: float, atol: float) -> None:
    values = golden("dino.npz")
    options: dict[str, Any] = {"batch_norm": False, "norm_last_layer": True} | HEADS[name]
    head = PrototypeHead(8, 16, hidden=12, bottleneck=6, **options).to(dtype)
    folder = f"head/{name}"
    stored = {key.removeprefix(f"{folder}/param/"): value for key, value in values.items() if f"{folder}/param/" in key}
    head.load_state_dict({key: tensor(value, dtype) for key, value in stored.items() if "running" not in key})
    images = tensor(values["head/in/x"], dtype).requires_grad_()
    out = head(images)
    (out * tensor(values["head/in/cotangent"], dtype)).sum().backward()
    close(out, values[f"{folder}/f64/out"], rtol=rtol, atol=atol)
    close(images.grad, values[f"{folder}/f64/grad_x"], rtol=rtol, atol=atol)
    taught = dict(values[f"{folder}/requires_grad"].tolist())
    for key, parameter in head.named_parameters():
        assert parameter.requires_grad == (taught[key] == "True")
        if parameter.requires_grad:
            close(parameter.grad, values[f"{folder}/f64/grad_param/{key}"], rtol=rtol, atol=atol)


@pytest.mark.parametrize("number", range(5))
def test_cosine(number: int) -> None:
    """The public schedule behind its warm-up; ours is a function of the share of steps that are done."""
    values = golden("dino.npz")
    start, end, epochs, steps, warmup, _ = values[
        f"cosine_scheduler/{number}/args_base_final_epochs_niter_warmup_startwarmup"
    ]
    expected = values[f"cosine_scheduler/{number}/values"][int(warmup * steps) :]
    assert len(expected) == (epochs - warmup) * steps
    close([cosine(start, end, step / len(expected)) for step in range(len(expected))], expected)


def test_temperature_warms_up_in_a_line() -> None:
    stored = golden("dino.npz")["loss/f64/teacher_temp_schedule"]
    close([warm_up(0.04, 0.07, epoch, 2) for epoch in range(5)], stored)
    assert [warm_up(1.0, 3.0, epoch, 3) for epoch in range(5)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert [warm_up(1.0, 3.0, 0, epochs) for epochs in (0, 1)] == [3.0, 1.0]


def test_the_same_crop_is_no_pair() -> None:
    student, teacher = torch.randn(3, 4, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    loss = dino_loss(
        student.flatten(0, 1),
        teacher.flatten(0, 1),
        torch.zeros(6),
        student_temperature=1,
        teacher_temperature=1,
        crops=3,
    )
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
    close(loss, torch.stack([soft_cross_entropy(student[s], teacher[t].softmax(1)) for t, s in pairs]).mean())


def test_uniform_outputs_lose_log_k() -> None:
    same = torch.ones(8, 7, dtype=torch.float64)
    loss = dino_loss(same, same[:4], same[0], student_temperature=0.1, teacher_temperature=0.04, crops=4)
    close(loss, math.log(7))


def test_centre_removes_what_all_images_share() -> None:
    teacher = torch.tensor([[50.0, 0.0, 0.0]]).repeat(4, 1)
    student = torch.zeros(4, 3)
    options: dict[str, Any] = {"student_temperature": 0.1, "teacher_temperature": 0.04, "crops": 2}
    student.requires_grad_()
    (pulled,) = torch.autograd.grad(dino_loss(student, teacher, torch.zeros(3), **options), student)
    (left,) = torch.autograd.grad(dino_loss(student, teacher, teacher[0], **options), student)
    assert pulled.abs().max() > 1.0
    close(left, torch.zeros(4, 3), atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-4, 1.0])
def test_extreme_scores(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student = (1e4 * torch.randn(8, 5, generator=generator)).requires_grad_()
    teacher = 1e4 * torch.randn(4, 5, generator=generator)
    loss = dino_loss(
        student, teacher, torch.zeros(5), student_temperature=temperature, teacher_temperature=temperature, crops=4
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_prototypes_do_not_move_in_the_first_epoch(norm_last_layer: bool) -> None:
    method = DINO(**TINY, freeze_last_layer=1, norm_last_layer=norm_last_layer)
    parts: Any = method.parts(tiny_setting()).double()
    for epoch in range(2):
        parts.zero_grad()
        method.loss(make_step(method.needs(), epoch, slice(8)), parts).total.backward()
        moved = [value.grad.abs().sum() > 0 for value in parts["head"].last_layer.parameters() if value.requires_grad]
        assert moved == [epoch == 1] * (1 if norm_last_layer else 2)


def test_teacher_follows_ever_more_slowly() -> None:
    method = DINO(**TINY, momentum=0.5)
    student = tiny_student()
    parts: Any = method.parts(tiny_setting())
    teacher = parts["teacher"].network.fc.weight
    student.fc.weight.data += 1.0
    before = teacher.clone()
    method.after_step(parts, student, {"mean": torch.zeros(11), "momentum": method.momentum_at(0.0)})
    torch.testing.assert_close(teacher, before + 0.5)
    before = teacher.clone()
    method.after_step(parts, student, {"mean": torch.zeros(11), "momentum": method.momentum_at(1.0)})
    assert torch.equal(teacher, before)
    assert not any(value.requires_grad for value in parts["teacher"].parameters())


def test_crops_of_a_step() -> None:
    needs = DINO(local_crops=3).needs()
    assert needs.views == (0, 1, 2, 3, 4)
    assert needs.images == {0, 1}
    assert needs.teacher == {}
    assert needs.draws[1] == Draw(scale=(0.4, 1.0))
    assert needs.draws[4] == Draw(scale=(0.05, 0.4), size=96 / 224)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)])
def test_impossible_crops_are_refused(scale: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"0 < low <= high <= 1"):
        DINO(local_scale=scale)


def test_entropy_of_the_assignment() -> None:
    scores = torch.eye(4)
    close(assignment_entropy(scores), 1.0, rtol=1e-6)
    close(assignment_entropy(scores[[0, 0, 1, 1]]), 0.5, rtol=1e-6)
    assert assignment_entropy(scores[[2, 2, 2]]) == 0
    assert assignment_entropy(torch.ones(5, 4)) == 0
