"""KDSVD: how the main directions of the student's maps change from stage to stage, as the teacher's do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, torch
from raydistill.methods.base import Loss, Method, SearchSpace, Setting, Step
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.stages import SeveralStages

_CANDIDATES = 3
"""The student has this many directions more to choose from than the teacher."""
_BANDWIDTH = 8.0


def kdsvd_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, k: int = 1) -> Tensor:
    """Distance of the relations between the main directions of neighbouring maps.

    A map is a matrix of places x channels. v_i are its k first right singular vectors, the columns weighted by
    the teacher's singular values (as a unit vector); the student's are those of its k + 3 first that fit the
    teacher's best, with the sign that fits. The loss is the sum over neighbouring maps i, i + 1, over channels
    and over columns of (R_s - R_t)^2, mean over the batch, R = exp(-(v_{i+1}[c] - v_i[c'])^2 / 8).

    Lee et al. 2018, https://arxiv.org/abs/1807.06819, as in the public benchmark. The sign of a singular vector is
    arbitrary and the loss depends on it: here the largest component of the teacher's is positive.

    Args:
        student_features: at least two maps [B, C_i, H_i, W_i].
        teacher_features: as many maps [B, C_i, H'_i, W'_i], with the student's channels.
        k: number of directions.

    Returns:
        A scalar.
    """
    students, teachers = [], []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        with no_autocast(student):
            with torch.no_grad():
                target, strength = main_directions(at_least_float32(teacher), k)
                target = fix_sign(target)
            directions, _ = main_directions(at_least_float32(student), k + _CANDIDATES)
            weights = F.normalize(strength, dim=1)[:, None]
            students.append(align(directions, target) * weights)
            teachers.append(target * weights)
    pairs = zip(pairwise(students), pairwise(teachers), strict=True)
    levels = [(relation(*own) - relation(*other)).square().sum(dim=(1, 2, 3)).mean() for own, other in pairs]
    return torch.stack(levels).sum()


def main_directions(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """First right singular vectors of maps [B, C, H, W] as places x channels, and the singular values.

    The vectors' gradient is that of torch's decomposition, but leaves out pairs of equal singular values, where no
    derivative exists: a channel that is zero everywhere, common behind a ReLU, would make all of it NaN.

    Returns:
        [B, C, n] and, without a gradient, [B, n]; n is ``count`` or what the map has, if that is less.
    """
    matrix = maps.flatten(2).mT
    _, values, transposed = torch.linalg.svd(matrix.detach(), full_matrices=False)
    basis, chosen = transposed.mT, transposed.mT[..., :count]
    # First-order perturbation of the eigenvectors of M^T M by a change that is zero: it carries the gradient only.
    product = matrix.mT @ (matrix @ chosen)
    change = product - product.detach()
    inside = basis.mT @ change
    squares = values.square()
    gaps = squares[:, None, :count] - squares[:, :, None]
    outside = (change - basis @ inside) * _inverse(squares[:, None, :count], squares)
    return chosen + basis @ (inside * _inverse(gaps, squares)) + outside, values[:, :count]


def _inverse(differences: Tensor, squares: Tensor) -> Tensor:
    """1 / differences [B, ...], and 0 where they are rounding errors of the largest of ``squares`` [B, n]."""
    noise = 10 * torch.finfo(squares.dtype).eps * squares[:, :1, None]
    clear = differences.abs() > noise
    return torch.where(clear, 1.0 / torch.where(clear, differences, 1.0), 0.0)


def fix_sign(directions: Tensor) -> Tensor:
    """Turn columns of [B, C, n] such that the largest component of each is positive."""
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -directions, directions)


def align(candidates: Tensor, target: Tensor) -> Tensor:
    """For each column of ``target`` [B, C, k] the candidate [B, C, n] of largest |cos|, turned to a positive one."""
    cosine = candidates.detach().mT @ target
    best = cosine.abs().argmax(dim=1, keepdim=True)
    chosen = candidates.gather(2, best.expand(-1, candidates.shape[1], -1))
    return torch.where(cosine.gather(1, best) < 0, -chosen, chosen)


def relation(earlier: Tensor, later: Tensor) -> Tensor:
    """exp(-(later[c] - earlier[c'])^2 / 8) of [B, C', k] and [B, C, k] -> [B, C, C', k]."""
    return torch.exp(-(later[:, :, None] - earlier[:, None]).square() / _BANDWIDTH)


class KDSVD(SeveralStages, Method):
    """Singular value decomposition of each map; relations between neighbouring stages are distilled.

    ``k`` directions are kept of each map. Both networks need equally many channels at each stage: directions in
    spaces of unlike dimension can't be compared. At least two stages are needed. The public code takes the signs of
    singular vectors as the library returns them, so that its value changes with library and device; here each
    vector's largest component is made positive, which turns those of maps without negative values all one way.
    """

    name: ClassVar[str] = "kdsvd"
    paper: ClassVar[str] = "Lee et al., ECCV 2018, https://arxiv.org/abs/1807.06819"
    equation: ClassVar[str] = "sum_i |R_s - R_t|^2, R = exp(-(v_{i+1}[c] - v_i[c'])^2 / 8), v from the SVD of map i"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [0.3, 3.0]}}
    search_source: ClassVar[str] = "Around the weight of CRD's public benchmark."

    k: Annotated[int, Field(ge=1)] = 1

    @field_validator("stages")
    @classmethod
    def _neighbours(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(value) == 1:
            raise ValueError("must have at least two entries: neighbouring stages are compared")
        return value

    def check(self, setting: Setting) -> None:
        """Channels must agree, and maps must have ``k`` directions."""
        shapes = zip(self.stages, self.student_shapes(setting), self.teacher_shapes(setting), strict=True)
        for stage, student, teacher in shapes:
            if student[0] != teacher[0]:
                raise ConfigError(
                    f"methods.{self.name}.stages: equally many channels are needed on both sides, but at the student's"
                    f" stage {stage} there are {student[0]} and {teacher[0]}"
                )
            most = min(student[0], student[1] * student[2], teacher[1] * teacher[2])
            if self.k > most:
                raise ConfigError(
                    f"methods.{self.name}.k: {self.k} is too many; the maps at the student's stage {stage} have "
                    f"{most}; lower it"
                )

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum over pairs of neighbouring stages, mean over the batch."""
        return Loss(kdsvd_loss(self.student_maps(step), self.teacher_maps(step), k=self.k))
