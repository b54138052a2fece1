"""PKT against RepDistiller and torchdistill, and its size at other batch sizes."""

from __future__ import annotations

import pytest
import torch

from raydistill.functional import pkt_loss
from raydistill.methods.pkt import PKT
from tests.methods.pairs import LOSSES, SECOND, check_pair, each_precision, random_rows
from tests.methods.support import close, single_step


@each_precision
def test_public_code(dtype: torch.dtype) -> None:
    check_pair(pkt_loss, "PKT", dtype)


@pytest.mark.parametrize("name", ["mdistiller/PKT", "torchdistill/PKT"])
def test_other_public_code(name: str) -> None:
    check_pair(pkt_loss, name, file=SECOND, inputs=(LOSSES, "PKT"))


def test_same_directions_cost_nothing() -> None:
    points = random_rows(6, 4).detach()
    lengths = torch.arange(1.0, 7.0)[:, None]
    close(pkt_loss(points * lengths, points), 0.0, atol=1e-8)
    assert pkt_loss(points.roll(1, 0), points) > 1e-3


def test_closed_form_of_two_points() -> None:
    """Opposite points see only themselves, orthogonal ones give the other a third."""
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    orthogonal = torch.eye(2, dtype=torch.float64)
    close(pkt_loss(orthogonal, opposite), torch.tensor(1.5).log() / 2, rtol=1e-5)


def test_paper_variant_does_not_depend_on_the_batch_size() -> None:
    """Copies of one batch: the code's value falls with their number, the paper's does not."""
    student, teacher = random_rows(8, 4).detach(), random_rows(8, 5, seed=1).detach()

    def value(copies: int, method: PKT) -> torch.Tensor:
        outputs = ({0: {"embedding": rows.repeat(copies, 1)}} for rows in (student, teacher))
        return method.loss(single_step(*outputs), {}).total

    one, four = value(1, PKT()), value(4, PKT())
    close(four, one, rtol=1e-4)
    close(value(8, PKT()), value(8, PKT(variant="code")))
    close(value(4, PKT(variant="code")), value(1, PKT(variant="code")) / 4, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_constant_embeddings_are_finite(value: float) -> None:
    student = torch.full((2, 4), value, requires_grad=True)
    pkt_loss(student, torch.randn(2, 3)).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
