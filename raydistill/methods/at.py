"""AT: the student attends to the places that the teacher attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.base import Loss, Method, SearchSpace, Step, Weight
from raydistill.methods.maps import same_size
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.stages import SeveralStages


def at_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    variant: Literal["paper", "code"] = "code",
) -> Tensor:
    """Distance of the unit vectors q = Q / |Q|, Q(h, w) = sum_c F(c, h, w)^2, summed over levels.

    ``code``: mean over batch and places of (q_s - q_t)^2, the public code. ``paper``: mean over the batch of
    |q_s - q_t|, the second term of Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928, Eq. 2,
    without its beta / 2. Of maps of unequal size the larger is average-pooled first.

    Args:
        student_features: maps [B, C_i, H_i, W_i].
        teacher_features: as many maps [B, C'_i, H'_i, W'_i].
        variant: which distance.

    Returns:
        A scalar.
    """
    levels = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        with no_autocast(student):
            pair = same_size(at_least_float32(student), at_least_float32(teacher))
            difference = attention(pair[0]) - attention(pair[1])
            if variant == "code":
                levels.append(difference.square().mean())
            else:
                levels.append(torch.linalg.vector_norm(difference, dim=1).mean())
    return torch.stack(levels).sum()


def attention(maps: Tensor) -> Tensor:
    """Mean of squares over the channels of maps [B, C, H, W], as unit vectors [B, H * W]."""
    return F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)


class AT(SeveralStages, Method):
    """Attention transfer: at each stage, squared activations summed over channels, normalised per image.

    ``variant: paper`` is Eq. 2 with the paper's beta, which is ``weight`` divided by the level's number of
    places: weight / (2 H W) * |q_s - q_t|. ``code`` is the public code, weight * mean of (q_s - q_t)^2, that is
    the distance squared and no 1/2. So ``weight`` is the paper's 10^3 in both, and the terms are of one size.
    """

    name: ClassVar[str] = "at"
    paper: ClassVar[str] = "Zagoruyko and Komodakis, ICLR 2017, https://arxiv.org/abs/1612.03928"
    equation: ClassVar[str] = "sum_i |q_s - q_t| / (2 H W), q = Q / |Q|, Q(h, w) = sum_c F(c, h, w)^2"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [300.0, 3000.0]}}
    search_source: ClassVar[str] = "Around the weight of CRD's tables."

    weight: Weight = 1000.0
    variant: Literal["paper", "code"] = "paper"

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum over the stages."""
        students, teachers = self.student_maps(step), self.teacher_maps(step)
        if self.variant == "code":
            return Loss(at_loss(students, teachers))
        levels = []
        for pair in zip(students, teachers, strict=True):
            student, teacher = same_size(*pair)
            levels.append(at_loss([student], [teacher], variant="paper") / (2 * student[0, 0].numel()))
        return Loss(torch.stack(levels).sum())
