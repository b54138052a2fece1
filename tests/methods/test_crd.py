"""CRD against three calls of RepDistiller's CRDLoss, and its draws of negatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raydistill.errors import ConfigError
from raydistill.functional import crd_nce_loss, crd_scores
from raydistill.methods.base import Setting
from raydistill.methods.crd import CRD
from raydistill.methods.negatives import NegativeSampler
from tests.golden import golden
from tests.methods.support import close, single_step, tensor, tiny_setting


class Stored(nn.Module):
    """Stands for the sampler and returns the public code's draws."""

    def __init__(self, chosen: Tensor) -> None:
        super().__init__()
        self.chosen = chosen

    def forward(self, index: Tensor, epoch: int) -> Tensor:
        return self.chosen[:, 1:]


def public_setup(dtype: torch.dtype) -> tuple[CRD, Any, dict[str, Any]]:
    values = golden("repdistiller_crd.npz")
    method = CRD(temperature=0.07, negatives=10, dimension=8, exclude="instance")
    setting = replace(tiny_setting(), student={"embedding": (12,)}, teachers=({"embedding": (16,)},), num_samples=50)
    parts: Any = method.parts(setting).to(dtype)
    parts["student_bank"].rows.copy_(tensor(values["in/memory_v1"]))
    parts["teacher_bank"].rows.copy_(tensor(values["in/memory_v2"]))
    for side, layer in (("student", "embed_s"), ("teacher", "embed_t")):
        stored = {name: tensor(values[f"in/{layer}.linear.{name}"]) for name in ("weight", "bias")}
        parts[side].load_state_dict(stored)
    return method, parts, values


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 2e-5, 1e-5)])
def test_public_code_over_three_calls(dtype: torch.dtype, rtol: float, atol: float) -> None:
    method, parts, values = public_setup(dtype)
    for call in range(3):
        expected = {
            name.removeprefix(f"f64/call{call}/"): value
            for name, value in values.items()
            if name.startswith(f"f64/call{call}/")
        }
        parts["sampler"] = Stored(tensor(values["in/contrast_idx"][call]))
        student = tensor(values["in/f_s"][call], dtype).requires_grad_()
        teacher = tensor(values["in/f_t"][call], dtype).requires_grad_()
        columns = {"index": tensor(values["in/idx"][call])}
        step = single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}, columns=columns)
        parts.zero_grad()
        loss = method.loss(step, parts)
        loss.total.backward()
        for actual, name in (
            (loss.total, "loss"),
            (loss.terms["student"], "loss_s"),
            (loss.terms["teacher"], "loss_t"),
            (student.grad, "grad_f_s"),
            (teacher.grad, "grad_f_t"),
            (parts["student"].weight.grad, "grad_param/embed_s.linear.weight"),
            (parts["teacher"].bias.grad, "grad_param/embed_t.linear.bias"),
        ):
            close(actual, expected[name], rtol=rtol, atol=atol)
        method.after_step(parts, nn.Identity(), loss.carry)
        close(parts["student_bank"].rows, expected["memory_v1_after"], rtol=rtol, atol=atol)
        close(parts["teacher_bank"].rows, expected["memory_v2_after"], rtol=rtol, atol=atol)
        close(parts["log_normaliser"].value.exp(), expected["params_after"][2:4], rtol=rtol)


def test_both_ways_to_score_agree_in_value_and_gradient() -> None:
    bank = torch.randn(400, 8, dtype=torch.float64)
    embedding = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64)).requires_grad_()
    few, many = torch.randint(400, (5, 3)), torch.randint(400, (5, 40))
    for index in (few, many):
        scores = crd_scores(embedding, bank, index, temperature=0.5)
        expected = ((embedding[:, None] * bank[index]).sum(-1) / 0.5).exp()
        close(scores, expected.detach())
        (got,) = torch.autograd.grad(scores.sum(), embedding)
        (want,) = torch.autograd.grad(expected.sum(), embedding)
        close(got, want)


def test_paper_variant_is_equation_19() -> None:
    setting = tiny_setting()
    method = CRD(negatives=4, dimension=8, variant="paper")
    parts: Any = method.parts(setting).double()
    index = torch.tensor([3, 11])
    student, teacher = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    step = single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}, columns={"index": index})
    chosen = torch.cat([index[:, None], parts["sampler"](index, 0)], dim=1)
    total = 0.0
    for head, outputs, bank in (("student", student, "teacher_bank"), ("teacher", teacher, "student_bank")):
        rows = torch.nn.functional.normalize(parts[head](outputs))
        score = ((rows[:, None] * parts[bank].rows[chosen]).sum(-1) / 0.1).exp()
        critic = score / (score + 4 / 24)
        total = total - (critic[:, 0].log() + (1 - critic[:, 1:]).log().sum(1)).mean()
    close(method.loss(step, parts).total, total, rtol=1e-5)


def test_the_class_is_the_pure_losses_on_logarithms() -> None:
    setting, index = tiny_setting(), torch.tensor([3, 11])
    method = CRD(negatives=4, dimension=8, temperature=0.2)
    parts: Any = method.parts(setting).double()
    student, teacher = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 7, dtype=torch.float64)
    step = single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}, columns={"index": index})
    chosen = torch.cat([index[:, None], parts["sampler"](index, 0)], dim=1)
    loss = method.loss(step, parts)
    for side, outputs, bank in (("student", student, "teacher_bank"), ("teacher", teacher, "student_bank")):
        embedding = torch.nn.functional.normalize(parts[side](outputs))
        scores = crd_scores(embedding, parts[bank].rows, chosen, temperature=0.2)
        close(loss.terms[side], crd_nce_loss(scores / (scores.detach().mean() * 24), bank_size=24))


def test_nce_of_uninformative_scores() -> None:
    """Where every score is 1 / M, h is 1 / (1 + K) for all."""
    scores = torch.full((2, 9), 1 / 50, dtype=torch.float64)
    expected = -(torch.tensor(1 / 9.0).log() + 8 * torch.tensor(8 / 9.0).log())
    close(crd_nce_loss(scores, bank_size=50), expected, rtol=1e-4)


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("size", [60, 97, 128])
def test_negatives_are_distinct_and_of_other_groups(size: int, by_class: bool) -> None:
    labels = torch.randint(4, (size,), generator=torch.Generator().manual_seed(0))
    groups = labels if by_class else torch.arange(size)
    most = size - int(groups.bincount().max())
    sampler = NegativeSampler(size, groups if by_class else None, most, seed=1)
    index = torch.randperm(size)
    chosen = sampler(index, 2)
    assert chosen.shape == (size, most)
    assert (groups[chosen] != groups[index][:, None]).all()
    assert all(len(row.unique()) == most for row in chosen)


def test_negatives_depend_on_seed_epoch_and_sample_only() -> None:
    def draw(seed: int, epoch: int, index: list[int]) -> Tensor:
        chosen: Tensor = NegativeSampler(500, None, 20, seed)(torch.tensor(index), epoch)
        return chosen

    together = draw(1, 0, [4, 9, 200])
    assert torch.equal(together[1], draw(1, 0, [9])[0])
    for other in (draw(2, 0, [4]), draw(1, 1, [4]), draw(1, 0, [5])):
        assert not torch.equal(together[:1], other)


def test_negatives_are_uniform() -> None:
    sampler = NegativeSampler(30, None, 5, seed=0)
    counts = torch.zeros(30)
    for epoch in range(2000):
        counts += sampler(torch.tensor([7]), epoch).flatten().bincount(minlength=30)
    assert counts[7] == 0
    expected = 2000 * 5 / 29
    assert ((counts[counts > 0] - expected).abs() < 5 * expected**0.5).all()


@pytest.mark.parametrize(("exclude", "most"), [("instance", 23), ("class", 19)])
def test_too_many_negatives_are_refused(exclude: Any, most: int) -> None:
    CRD(negatives=most, exclude=exclude).check(tiny_setting())
    with pytest.raises(ConfigError, match=rf"^methods\.crd\.negatives: .*at most {most}$"):
        CRD(negatives=most + 1, exclude=exclude).check(tiny_setting())


def test_excluding_classes_needs_labels() -> None:
    unlabelled: Setting = replace(tiny_setting(), labels=None)
    with pytest.raises(ConfigError, match=r"methods\.crd\.exclude"):
        CRD(negatives=4).check(unlabelled)
    CRD(negatives=4, exclude="instance").check(unlabelled)
