"""SEED against its public code over four calls; the queue wraps within the fourth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raydistill.functional import info_nce_loss, seed_loss
from raydistill.methods.seed import SEED
from tests.golden import golden
from tests.methods.support import close, single_step, tensor, tiny_setting

PAIRS = [(0.2, 0.01), (0.2, 1e-4), (0.2, 0.07), (0.07, 0.07)]


def plain(student: Tensor, teacher: Tensor, queue: Tensor, teacher_temperature: float) -> Tensor:
    """The loss with all scores laid out, T_s = 0.1."""
    student, teacher = F.normalize(student), F.normalize(teacher)
    own = [(side * teacher).sum(1, keepdim=True) for side in (student, teacher)]
    scores = torch.cat([own[0], student @ queue.T], dim=1) / 0.1
    targets = torch.cat([own[1], teacher @ queue.T], dim=1) / teacher_temperature
    return -(targets.softmax(1) * scores.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize(("student_temperature", "teacher_temperature"), PAIRS)
@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 2e-5, 1e-5)])
def test_public_code_over_four_calls(
    student_temperature: float, teacher_temperature: float, dtype: torch.dtype, rtol: float, atol: float
) -> None:
    values = golden("seed.npz")
    setting = replace(tiny_setting(), student={"embedding": (6,)}, teachers=({"embedding": (6,)},))
    method = SEED(student_temperature=student_temperature, teacher_temperature=teacher_temperature, queue=12)
    parts: Any = method.parts(setting).to(dtype)
    parts["head"] = nn.Identity()
    parts["queue"].keys.copy_(tensor(values["f64/queue0"]).T)
    if teacher_temperature == 1e-4:
        # Scores are 1e4 times the similarities, of which float32 keeps seven digits.
        rtol = max(rtol, 2e-4 if dtype == torch.float32 else 0.0)
    for call in range(4):
        student = tensor(values["in/s_emb_raw"][call], dtype).requires_grad_()
        teacher = tensor(values["in/t_emb_raw"][call], dtype)
        loss = method.loss(single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}), parts)
        loss.total.backward()
        folder = f"f64/ts{student_temperature}_tt{teacher_temperature}/call{call}"
        close(loss.total, values[f"{folder}/loss"], rtol=rtol)
        close(student.grad, values[f"{folder}/grad_s_raw"], rtol=rtol, atol=atol)
        method.after_step(parts, nn.Identity(), loss.carry)
        close(parts["queue"].keys, values[f"f64/call{call}/queue_after"].T, rtol=rtol, atol=atol)
        assert parts["queue"].pointer == values[f"f64/call{call}/ptr_after"][0]


def test_without_own_key_it_is_ressl() -> None:
    values = golden("seed.npz")
    loss = seed_loss(
        tensor(values["in/s_emb_raw"][0]),
        tensor(values["in/t_emb_raw"][0]),
        tensor(values["f64/queue0"]).T,
        student_temperature=0.2,
        teacher_temperature=0.01,
        own_key=False,
    )
    close(loss, values["ressl_f64/loss_tq0.2_tk0.01_queue_only"])


def test_a_sharp_teacher_makes_it_info_nce() -> None:
    student, teacher = torch.randn(2, 3, 6, dtype=torch.float64)
    queue = F.normalize(torch.randn(9, 6, dtype=torch.float64))
    loss = seed_loss(student, teacher, queue, student_temperature=0.2, teacher_temperature=1e-5)
    close(loss, info_nce_loss(student, teacher, queue, temperature=0.2))


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("temperature", [1e-4, 0.07])
def test_many_blocks_are_one_softmax(scale: float, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.methods.key_softmax._BLOCK", 8)
    student = (scale * torch.randn(4, 6, dtype=torch.float64)).requires_grad_()
    teacher, queue = torch.randn(4, 6, dtype=torch.float64), torch.randn(23, 6, dtype=torch.float64)
    loss = seed_loss(student, teacher, queue, student_temperature=0.1, teacher_temperature=temperature)
    expected = plain(student, teacher, queue, temperature)
    close(loss, expected)
    (got,), (want,) = (torch.autograd.grad(value, student) for value in (loss, expected))
    close(got, want, atol=1e-15)


def test_one_key_for_all_leaves_only_chance() -> None:
    """A constant teacher and a queue of the same key: every key has the same chance."""
    key = F.normalize(torch.randn(1, 6, dtype=torch.float64))
    student = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    loss = seed_loss(student, key.expand(2, -1), key.expand(7, -1), student_temperature=0.2, teacher_temperature=0.01)
    close(loss, torch.tensor(8.0, dtype=torch.float64).log())
    close(torch.autograd.grad(loss, student)[0], torch.zeros(2, 6), atol=1e-14)
