"""RKD: distances and angles between the images of a batch are the same for the student as for the teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Step, Weight
from raydistill.methods.collectives import gather_rows, gather_with_grad
from raydistill.methods.precision import at_least_float32, no_autocast

_EPSILON = 1e-12


def rkd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
    variant: Literal["paper", "code"] = "code",
) -> Tensor:
    """w_d huber(psi_D(s), psi_D(t)) + w_a huber(psi_A(s), psi_A(t)), each a mean over all pairs and all triplets.

    Park et al. 2019, https://arxiv.org/abs/1904.05068. psi_D is a pair's distance divided by the mean
    distance of all pairs, psi_A the cosine at the middle one of three points. As in the public code the means of the
    losses are over all B^2 and B^3 entries, those with a point twice included, which are 0 on both sides; the mean
    distance is over pairs of different points. Memory: B^3 + B^2 D numbers a side.

    Points that coincide have the distance 1e-6, without a gradient, and no direction, so that their angles are 0.
    With ``variant: code`` such an angle's gradient is 1e12 times its error, finite but ruinous, as in the public
    code; with ``paper`` it is 0. Values do not differ.

    Args:
        student_embedding: [B, D_s], B at least 2.
        teacher_embedding: [B, D_t].
        distance_weight: w_d.
        angle_weight: w_a.
        variant: see above.

    Returns:
        A scalar.
    """
    with no_autocast(student_embedding):
        student, teacher = _differences(student_embedding), _differences(teacher_embedding)
        distance = F.smooth_l1_loss(_distances(student), _distances(teacher))
        total = distance_weight * distance
        if angle_weight:
            angle = F.smooth_l1_loss(_angles(student, variant), _angles(teacher, variant))
            total = total + angle_weight * angle
        return total


def _differences(embedding: Tensor) -> Tensor:
    """Row i minus row j: [B, D] -> [B, B, D]."""
    rows = at_least_float32(embedding)
    return rows[:, None] - rows[None]


def _distances(differences: Tensor) -> Tensor:
    """Lengths divided by their mean over pairs of different points: [B, B]."""
    count = len(differences)
    lengths = differences.square().sum(dim=2).clamp_min(_EPSILON).sqrt()
    lengths = lengths * (1.0 - torch.eye(count, dtype=lengths.dtype, device=lengths.device))
    return lengths / (lengths.sum() / (count * (count - 1)))


def _angles(differences: Tensor, variant: Literal["paper", "code"]) -> Tensor:
    """Cosines between the directions from point j to points i and k: [B, B, B], in the order j, i, k."""
    directions = F.normalize(differences, dim=2, eps=_EPSILON)
    if variant == "paper":
        apart = (differences != 0).any(dim=2, keepdim=True)
        directions = torch.where(apart, directions, 0.0)
    return directions @ directions.transpose(1, 2)


class RKD(Method):
    """Relational distillation: pairwise distances and angles of triplets in the global batch, on embeddings.

    ``variant`` matters only where two images have exactly the same student embedding: the direction between them
    is undefined, and the public code (``code``) sends a gradient of about 1e10 there; ``paper`` sends none. The
    angles take memory for B^3 numbers on either side, B being the global batch.
    """

    name: ClassVar[str] = "rkd"
    paper: ClassVar[str] = "Park et al., CVPR 2019, https://arxiv.org/abs/1904.05068"
    equation: ClassVar[str] = "w_d huber(|i-j|_s / mean, |i-j|_t / mean) + w_a huber(cos ijk_s, cos ijk_t)"
    search_space: ClassVar[SearchSpace] = {
        "distance_weight": {"loguniform": [8.0, 80.0]},
        "angle_weight": {"loguniform": [15.0, 150.0]},
    }
    search_source: ClassVar[str] = "Around the weights of CRD's tables."

    distance_weight: Weight = 25.0
    angle_weight: Weight = 50.0
    variant: Literal["paper", "code"] = "paper"

    def needs(self) -> Needs:
        """Embeddings on both sides."""
        return Needs.of_both_sides("embedding")

    def loss(self, step: Step, parts: Any) -> Loss:
        """Relation of all pairs and triplets of the global batch."""
        return Loss(
            rkd_loss(
                gather_with_grad(step.student[0]["embedding"]),
                gather_rows(step.teacher[0]["embedding"]),
                distance_weight=self.distance_weight,
                angle_weight=self.angle_weight,
                variant=self.variant,
            )
        )
