"""SP: images that look alike to the teacher look alike to the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from raydistill.lazy import Tensor, torch
from raydistill.methods.base import Loss, Method, SearchSpace, Step, Weight
from raydistill.methods.collectives import PUBLISHED_BATCH, gather_rows, gather_with_grad
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.stages import OneStage, StageNumber

_EPSILON = 1e-12


def sp_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """|G_s - G_t|_F^2 / B^2, summed over levels; G is F F^T of flattened maps with rows of length 1.

    Tung and Mori 2019, https://arxiv.org/abs/1907.09682, Eq. 2 to 4. Rows have length 1, so for a given mismatch
    the value falls like 1 / B.

    Args:
        student_features: maps [B, C_i, H_i, W_i], or any [B, ...].
        teacher_features: as many, of any shapes [B, ...].

    Returns:
        A scalar.
    """
    levels = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        with no_autocast(student):
            levels.append((similarity(student) - similarity(teacher)).square().mean())
    return torch.stack(levels).sum()


def similarity(features: Tensor) -> Tensor:
    """Inner products of all pairs of a batch [B, ...], each row of [B, B] L2-normalised."""
    rows = at_least_float32(features).flatten(1)
    products = rows @ rows.T
    length = torch.linalg.vector_norm(products, dim=1, keepdim=True)
    # The row of an image whose map is all zero stays zero and sends no gradient: 1 / epsilon would ruin the step.
    return torch.where(length > _EPSILON, products / length.clamp_min(_EPSILON), 0.0)


class SP(OneStage, Method):
    """Similarity-preserving distillation: the pairwise similarities within a batch, taken over the global batch.

    The loss falls like 1 / B, and its published weight was chosen at a batch of 64. ``variant: paper``
    multiplies it by B / 64, so that ``weight`` means the same at every batch size; ``code`` does not, and needs
    another ``weight`` at another batch size. At 64 both are the paper's Eq. 4 and the public code.

    ``stage`` is the last one of networks with stages 0 to 3 (resnet, wrn, shufflenet).
    """

    name: ClassVar[str] = "sp"
    paper: ClassVar[str] = "Tung and Mori, ICCV 2019, https://arxiv.org/abs/1907.09682"
    equation: ClassVar[str] = "B/64 * |G_s - G_t|_F^2 / B^2, G = F F^T with unit rows, F [B, C H W]"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [1000.0, 10000.0]}}
    search_source: ClassVar[str] = "Around the weight of CRD's tables."

    weight: Weight = 3000.0
    stage: StageNumber = 3
    variant: Literal["paper", "code"] = "paper"

    def loss(self, step: Step, parts: Any) -> Loss:
        """Relation of all pairs of the global batch."""
        students = [gather_with_grad(maps) for maps in self.student_maps(step)]
        teachers = [gather_rows(maps) for maps in self.teacher_maps(step)]
        total = sp_loss(students, teachers)
        if self.variant == "paper":
            total = total * (len(students[0]) / PUBLISHED_BATCH)
        return Loss(total)
