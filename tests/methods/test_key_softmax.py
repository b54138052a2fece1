"""Softmax over a queue in blocks: the same numbers as at once, in little memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raydistill.functional import compress_loss, info_nce_loss, seed_loss
from raydistill.methods.base import Method
from raydistill.methods.cocord import CoCoRD
from raydistill.methods.compress import CompRes
from raydistill.methods.key_softmax import attend, log_sum
from raydistill.methods.seed import SEED
from raydistill.methods.state import KeyQueue
from tests.methods.support import close, make_step, tiny_setting, tiny_student

QUEUE = 4000
SEVERAL_BLOCKS = 8 * 500


class LargestMade(TorchDispatchMode):
    """Size of the largest tensor that operations make in memory of their own."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {value.untyped_storage().data_ptr() for value in known}
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.known:
                self.numbers = max(self.numbers, value.numel())
        return made


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydistill.methods.key_softmax._BLOCK", SEVERAL_BLOCKS)


@pytest.mark.parametrize("temperature", [1e-4, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.usefixtures("small_blocks")
def test_sums_and_gradient_are_those_of_one_softmax(temperature: float, scale: float) -> None:
    queries = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    keys, values = scale * torch.randn(1300, 5, dtype=torch.float64), torch.randn(1300, 3, dtype=torch.float64)
    scaled, other = queries / temperature, torch.randn(3, 5, dtype=torch.float64)
    scores = scaled @ keys.T
    chances = scores.softmax(dim=1)
    for found in (attend([(scaled, keys)], values)[0], attend([(other, -keys), (scaled, keys)], values)[1]):
        close(found.log_sum, scores.logsumexp(1))
        close(found.mean_score, (chances * scores).sum(1))
        close(found.mean_value, chances @ values, atol=1e-9)
    more = found.including(scores[:, 0], values[0].expand(8, -1))
    again = torch.cat([scores, scores[:, :1]], dim=1)
    close(more.log_sum, again.logsumexp(1))
    close(more.mean_value, again.softmax(1) @ torch.cat([values, values[:1]]), atol=1e-9)
    both = attend([(other, keys), (scaled, keys)], keys)
    close(both[0].log_sum, (other @ keys.T).logsumexp(1))
    total = log_sum(scaled, both[1])
    close(total, scores.logsumexp(1))
    got, want = (
        torch.autograd.grad(value.sum(), queries, retain_graph=True)[0] for value in (total, scores.logsumexp(1))
    )
    close(got, want, atol=1e-9 * scale / temperature)


@pytest.mark.usefixtures("small_blocks")
def test_losses_are_those_with_all_scores_laid_out() -> None:
    student, teacher = (torch.randn(8, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    queue, other = torch.randn(1300, 6, dtype=torch.float64), torch.randn(1300, 6, dtype=torch.float64)
    one, two = F.normalize(student), F.normalize(teacher)
    own = (one * two).sum(1, keepdim=True)
    logits = torch.cat([own, one @ F.normalize(queue).T], dim=1) / 0.1
    pairs = [
        (info_nce_loss(student, teacher, queue, temperature=0.1), -logits.log_softmax(1)[:, 0].mean()),
        (
            info_nce_loss(student, teacher, F.normalize(queue), temperature=0.1, unit_negatives=True),
            -logits.log_softmax(1)[:, 0].mean(),
        ),
        (
            info_nce_loss(student, teacher, queue.clone().requires_grad_(), temperature=0.1),
            -logits.log_softmax(1)[:, 0].mean(),
        ),
        (
            compress_loss(student, teacher.detach(), queue, other, temperature=0.1),
            F.kl_div(
                (one @ queue.T / 0.1).log_softmax(1),
                (two.detach() @ other.T / 0.1).log_softmax(1),
                reduction="batchmean",
                log_target=True,
            ),
        ),
    ]
    for actual, expected in pairs:
        close(actual, expected)
        got, want = (torch.autograd.grad(value, student, retain_graph=True)[0] for value in (actual, expected))
        close(got, want)


def test_negatives_that_take_a_gradient_get_one() -> None:
    query, positive = torch.randn(2, 3, 6, dtype=torch.float64)
    negatives = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda keys: info_nce_loss(query, positive, keys, temperature=0.5), (negatives,))


@pytest.mark.parametrize(
    "method",
    [
        CompRes(queue=QUEUE, queues="1q"),
        CompRes(queue=QUEUE, queues="2q", momentum=0.0),
        SEED(queue=QUEUE),
        CoCoRD(queue=QUEUE, hidden=9, dimension=8, predictor_hidden=4),
    ],
    ids=lambda method: f"{method.name} {getattr(method, 'queues', '')}",
)
@pytest.mark.usefixtures("small_blocks")
def test_a_step_neither_copies_the_queue_nor_lays_out_the_scores(method: Method) -> None:
    setting = tiny_setting()
    parts: Any = method.parts(setting)
    student = tiny_student()
    made = make_step(method.needs(), 0, slice(8), setting=setting, student=student.double())
    parts.double()
    queues = [part.keys for part in parts.values() if isinstance(part, KeyQueue)]
    known = [*queues, *parts.parameters(), *student.parameters()]
    with LargestMade(known) as largest:
        loss = method.loss(made, parts)
        loss.total.backward()
        method.after_step(parts, student, loss.carry)
    assert largest.numbers <= SEVERAL_BLOCKS < min(8 * QUEUE, *(queue.numel() for queue in queues))
    assert [part.keys.data_ptr() for part in parts.values() if isinstance(part, KeyQueue)] == [
        queue.data_ptr() for queue in queues
    ]


def test_the_pure_losses_neither() -> None:
    student, teacher = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16)
    queue = F.normalize(torch.randn(300_000, 16))
    with LargestMade([queue]) as largest:
        for loss in (
            info_nce_loss(student, teacher, queue, temperature=0.1),
            seed_loss(student, teacher, queue, student_temperature=0.2, teacher_temperature=0.01),
            compress_loss(student, teacher, queue, queue, temperature=0.04),
        ):
            loss.backward()
    assert largest.numbers < 8 * len(queue)
