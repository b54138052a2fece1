"""ONE: the loss against its formula, and branches of a real network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raydistill.errors import ConfigError
from raydistill.functional import one_loss
from raydistill.methods.base import Loss, Setting, Step
from raydistill.methods.objective import Objective
from raydistill.methods.one import ONE, gated_logits
from raydistill.models.hooked import HookedNetwork
from raydistill.models.zoo import build_model
from tests.methods.support import CLASSES, close, tiny_setting

IMAGE = (3, 8, 8)


def inputs(branches: int = 3, batch: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, a gate before its softmax, and labels."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(branches, batch, CLASSES, generator=generator, dtype=dtype)
    scores = torch.randn(batch, branches, generator=generator, dtype=dtype)
    return logits.requires_grad_(), scores.requires_grad_(), torch.arange(batch) % CLASSES


def by_hand(logits: Tensor, gate: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The paper's sum, image by image."""
    total = torch.zeros((), dtype=logits.dtype)
    for image, label in enumerate(labels):
        ensemble = torch.zeros_like(logits[0, image])
        for branch in range(len(logits)):
            ensemble = ensemble + gate[image, branch] * logits[branch, image]
        target = (ensemble.detach() / temperature).softmax(dim=0)
        total = total - ensemble.softmax(dim=0)[label].log()
        for own in logits[:, image]:
            soft = (own / temperature).softmax(dim=0)
            total = total - own.softmax(dim=0)[label].log()
            total = total + temperature**2 * (target * (target / soft).log()).sum()
    return total / len(labels)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_formula(dtype: torch.dtype, rtol: float) -> None:
    logits, scores, labels = inputs(dtype=dtype)
    loss = one_loss(logits, scores.softmax(dim=1), labels, temperature=3.0)
    expected = by_hand(logits, scores.softmax(dim=1), labels, 3.0)
    close(loss, expected, rtol=rtol)
    found, wanted = (torch.autograd.grad(value, (logits, scores)) for value in (loss, expected))
    for left, right in zip(found, wanted, strict=True):
        close(left, right, rtol=rtol, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_equal_branches_are_their_own_ensemble() -> None:
    logits, scores, labels = inputs()
    equal = logits[:1].expand(3, -1, -1)
    close(gated_logits(equal, scores.softmax(dim=1)), logits[0])
    loss = one_loss(equal, scores.softmax(dim=1), labels, temperature=3.0)
    close(loss, 4 * F.cross_entropy(logits[0], labels))


def test_one_branch_that_gets_all_the_weight_is_the_ensemble() -> None:
    logits, _, _ = inputs()
    gate = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).expand(4, -1)
    close(gated_logits(logits, gate), logits[1])


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("temperature", [1e-4, 3.0])
def test_extremes_are_finite(scale: float, temperature: float) -> None:
    logits, scores, labels = inputs(batch=2, dtype=torch.float32)
    loss = one_loss(logits * scale, scores.softmax(dim=1), labels, temperature=temperature)
    gradients = torch.autograd.grad(loss, (logits, scores))
    assert all(torch.isfinite(value).all() for value in (loss, *gradients))


def resnet(name: str = "resnet8") -> tuple[Any, Setting]:
    """A real student of 8x8 images and its setting."""
    torch.manual_seed(0)
    student = build_model(name, CLASSES)
    return student, replace(tiny_setting(student), student=student.shapes(IMAGE), teachers=())


def evaluated(student: nn.Module, setting: Setting, method: ONE, epoch: int = 0) -> tuple[Loss, Objective]:
    objective = Objective({"one": method}, setting)
    images = torch.randn(8, *IMAGE, generator=torch.Generator().manual_seed(1))
    outputs = student(images, outputs=sorted(method.needs().student[0]))
    columns = {"label": torch.arange(8) % CLASSES}
    return objective(Step(views={}, student={0: outputs}, teachers=(), columns=columns, epoch=epoch)), objective


@pytest.mark.parametrize(("name", "stage"), [("resnet8", 3), ("resnet8", 2), ("vgg8", 4), ("wrn_16_1", 3)])
def test_gradients_reach_the_student_every_branch_and_the_gate(name: str, stage: int) -> None:
    student, setting = resnet(name)
    loss, objective = evaluated(student, setting, ONE(stage=stage))
    assert sum(key.endswith(("fc.weight", "classifier.weight")) for key in objective.state_dict()) == 2
    loss.total.backward()
    # A bias in front of a batch-norm has no effect.
    biases = ("gate.0.bias", *({"vgg8": ["0.bias", "3.bias"]}.get(name, [])))
    for key, value in (*student.named_parameters(), *objective.named_parameters()):
        assert value.grad is not None, key
        assert value.grad.abs().sum() > 0 or key.endswith(biases), key


def test_terms_add_up_and_the_first_branch_is_the_student() -> None:
    student, setting = resnet()
    loss, objective = evaluated(student, setting, ONE())
    terms = loss.terms
    close(loss.total, terms["one/branches"] + terms["one/ensemble"] + terms["one/divergence"], rtol=1e-6)
    parts = objective.parts["one"]
    for branch in parts["branches"]:
        branch.load_state_dict({key: student.state_dict()[key.partition(".")[2]] for key in branch.state_dict()})
    images = torch.randn(8, *IMAGE, generator=torch.Generator().manual_seed(1))
    outputs = student.train()(images, outputs=("features/2", "logits"))
    step = Step(views={}, student={0: outputs}, teachers=(), columns={"label": torch.arange(8) % CLASSES})
    equal = objective(step).terms
    own = F.cross_entropy(outputs["logits"], step.columns["label"])
    close(equal["one/ensemble"], own, rtol=1e-5)
    close(equal["one/branches"], 3 * own, rtol=1e-5)
    close(equal["one/divergence"], 0.0, atol=1e-6)


def test_branches_differ_and_follow_from_the_seed() -> None:
    _, setting = resnet()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = ONE().parts(setting).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    second = ONE().parts(setting).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    heads = [first[f"branches.{number}.network.fc.weight"] for number in (0, 1)]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(ONE().parts(replace(setting, seed=4)).state_dict()["gate.0.weight"], first["gate.0.weight"])
    assert all("running" not in key for key in first)


def test_the_divergence_is_ramped_up() -> None:
    student, setting = resnet()
    shares = []
    for epoch in (0, 5, 10, 11):
        loss, _ = evaluated(student, setting, ONE(rampup=10), epoch)
        rest = loss.terms["one/branches"] + loss.terms["one/ensemble"]
        shares.append(float((loss.total.detach() - rest) / loss.terms["one/divergence"]))
    assert shares == pytest.approx([0.006738, 0.2865, 1.0, 1.0], rel=1e-2)


def test_a_student_that_cannot_be_split_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, CLASSES))
    setting = tiny_setting(HookedNetwork(network, "2", IMAGE))
    with pytest.raises(ConfigError, match=r"^methods\.one: the student is a network of another library"):
        ONE().check(setting)


def test_a_stage_that_the_student_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^methods\.one\.stage: 4 is too high; the student's last stage is 3$"):
        ONE(stage=4).check(tiny_setting())
