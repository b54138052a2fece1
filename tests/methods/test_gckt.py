"""The 1-Lipschitz critic of GCKT."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from raydistill.methods.crd import CRD
from raydistill.methods.gckt import GCKT, lipschitz_embedding
from tests.methods.support import close, double_parts, single_step, tiny_setting


def linear(width: int, inputs: int) -> tuple[Tensor, Tensor]:
    return 3 * torch.randn(width, inputs, dtype=torch.float64), torch.randn(width, dtype=torch.float64)


@pytest.mark.parametrize(("width", "inputs"), [(8, 5), (5, 8)])
@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_no_two_points_move_apart(width: int, inputs: int, scale: float) -> None:
    weight, bias = linear(width, inputs)
    points = scale * torch.randn(40, inputs, dtype=torch.float64)
    made = lipschitz_embedding(points, weight, bias)
    assert (made.norm(dim=1) <= 1 + 1e-12).all()
    assert (torch.pdist(made) <= torch.pdist(points) * (1 + 1e-9)).all()


def test_the_bound_is_reached_along_the_first_singular_vector() -> None:
    weight, _ = linear(8, 5)
    direction = torch.linalg.svd(weight).Vh[0]
    made = lipschitz_embedding(0.5 * direction[None], weight, torch.zeros(8, dtype=torch.float64))
    close(made.norm(), 0.5)


def test_gradient_of_the_normalised_map() -> None:
    weight, bias = linear(4, 3)
    points = torch.randn(6, 3, dtype=torch.float64)
    arguments = [value.requires_grad_() for value in (points, weight, bias)]
    assert torch.autograd.gradcheck(lipschitz_embedding, arguments)


def test_long_embeddings_are_contrasted_as_by_crd() -> None:
    """Far outside the ball the projection is the L2-normalisation, and the objective CRD's."""
    setting, index = tiny_setting(), torch.tensor([3, 11])
    methods: list[Any] = [GCKT(negatives=4, dimension=8), CRD(negatives=4, dimension=8)]
    parts = [double_parts(method, setting) for method in methods]
    for side in ("student", "teacher"):
        for made in parts:
            made[side].bias.data.zero_()
    student, teacher = 1e4 * torch.randn(2, 6, dtype=torch.float64), 1e4 * torch.randn(2, 7, dtype=torch.float64)
    step = single_step({0: {"embedding": student}}, {0: {"embedding": teacher}}, columns={"index": index})
    ours, theirs = (method.loss(step, made) for method, made in zip(methods, parts, strict=True))
    close(ours.total, theirs.total)
    for name in ("student", "teacher"):
        close(ours.terms[name], theirs.terms[name])
