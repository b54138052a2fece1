"""CRD's alternative objective, and the banks that both share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.errors import ConfigError
from raydistill.methods import sampled
from raydistill.methods.base import Step
from raydistill.methods.crd import CRD
from raydistill.methods.info_nce import InfoNCE
from raydistill.methods.registry import method_class
from tests.methods.support import close, double_parts, single_step, tiny_setting

INDEX = torch.tensor([3, 11])


def step_of(student: Tensor, teacher: Tensor) -> Step:
    return single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}, columns={"index": INDEX})


def random_step() -> Step:
    return step_of(torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.1, 1e-4])
def test_softmax_over_own_row_and_negatives_both_ways(temperature: float) -> None:
    method = InfoNCE(negatives=4, dimension=8, temperature=temperature)
    parts = double_parts(method, tiny_setting())
    step = random_step()
    loss = method.loss(step, parts)
    chosen = torch.cat([INDEX[:, None], parts["sampler"](INDEX, 0)], dim=1)
    total = 0.0
    for head, outputs, bank in (("student", step.student, "teacher_bank"), ("teacher", step.teacher, "student_bank")):
        rows = torch.nn.functional.normalize(parts[head](outputs[0]["embedding"]))
        scores = (rows[:, None] * parts[bank].rows[chosen]).sum(-1) / temperature
        side = -scores.log_softmax(dim=1)[:, 0].mean()
        close(loss.terms[head], side)
        total = total + side
    close(loss.total, total)


def test_alike_rows_leave_only_chance() -> None:
    method = InfoNCE(negatives=6, dimension=8)
    parts = double_parts(method, tiny_setting())
    for bank in ("student_bank", "teacher_bank"):
        parts[bank].rows.copy_(parts[bank].rows[:1].expand_as(parts[bank].rows))
    close(method.loss(random_step(), parts).total, 2 * torch.tensor(7.0, dtype=torch.float64).log())


def test_draws_and_banks_are_those_of_crd() -> None:
    setting, step = tiny_setting(), random_step()
    made = {}
    for method in (InfoNCE(negatives=4, dimension=8), CRD(negatives=4, dimension=8)):
        parts = double_parts(method, setting)
        method.after_step(parts, setting.student_network, method.loss(step, parts).carry)
        made[method.name] = (parts["sampler"](INDEX, 1), parts["student_bank"].rows, parts["teacher_bank"].rows)
    for ours, theirs in zip(made["info_nce"], made["crd"], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["info_nce", "crd", "gckt", "wcord"])
def test_what_the_data_do_not_allow_is_refused(name: str) -> None:
    unlabelled = replace(tiny_setting(), labels=None)
    with pytest.raises(ConfigError, match=rf"^methods\.{name}\.exclude: .*labels; use 'instance'$"):
        method_class(name)(negatives=4).check(unlabelled)
    with pytest.raises(ConfigError, match=rf"^methods\.{name}\.negatives: 24 .*at most 23$"):
        method_class(name)(negatives=24, exclude="instance").check(unlabelled)
    alone: Any = method_class(name)(negatives=23, exclude="instance", dimension=8)
    alone.check(unlabelled)
    assert "label" not in alone.needs().columns
    assert torch.isfinite(alone.loss(random_step(), double_parts(alone, unlabelled)).total)


def test_rows_read_in_blocks_are_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, index = torch.randn(400, 8, dtype=torch.float64), torch.randint(400, (5, 4))
    embedding = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    expected = (embedding[:, None] * bank[index]).sum(-1)
    monkeypatch.setattr(sampled, "_BLOCK", 2 * 4 * 8)
    similarity = sampled.sampled_products(embedding, bank, index)
    close(similarity, expected.detach())
    weights = torch.randn(5, 4, dtype=torch.float64)
    got, want = (torch.autograd.grad((value * weights).sum(), embedding)[0] for value in (similarity, expected))
    close(got, want)
