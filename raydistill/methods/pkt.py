"""PKT: each image's neighbours are as probable to the student as to the teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from raydistill.lazy import Tensor, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Step, Weight
from raydistill.methods.collectives import PUBLISHED_BATCH, gather_rows, gather_with_grad
from raydistill.methods.precision import at_least_float32, no_autocast

_EPSILON = 1e-7


def pkt_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """sum_ij p_ij (log p_ij - log q_ij) / B^2; p_ij is j's share of i's similarities to the teacher, q to the student.

    Passalis and Tefas 2018, https://arxiv.org/abs/1803.10837, with the kernel (cos + 1) / 2. The mean
    over all B^2 entries and the 1e-7 in the norm and in both logarithms are the public code's: rows of p sum to 1, so
    for a given mismatch the value falls like 1 / B.

    Args:
        student_embedding: [B, D_s].
        teacher_embedding: [B, D_t].

    Returns:
        A scalar.
    """
    with no_autocast(student_embedding):
        student, teacher = _shares(student_embedding), _shares(teacher_embedding)
        return (teacher * ((teacher + _EPSILON).log() - (student + _EPSILON).log())).mean()


def _shares(embedding: Tensor) -> Tensor:
    """Conditional probability of each image's neighbours: [B, D] -> [B, B], rows sum to 1."""
    rows = at_least_float32(embedding)
    rows = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + _EPSILON)
    similarity: Tensor = (rows @ rows.T + 1.0) / 2.0
    return similarity / similarity.sum(dim=1, keepdim=True)


class PKT(Method):
    """Probabilistic knowledge transfer: neighbourhoods in the embedding space, over the global batch.

    The loss falls like 1 / B, and its weight of 30000 was chosen at a batch of 64. ``variant: paper`` multiplies
    the loss by B / 64, B being the global batch, so that ``weight`` means the same at every batch size; ``code``
    does not, and needs another ``weight`` at another batch size. At 64 they are the same.
    """

    name: ClassVar[str] = "pkt"
    paper: ClassVar[str] = "Passalis and Tefas, ECCV 2018, https://arxiv.org/abs/1803.10837"
    equation: ClassVar[str] = "B/64 * mean_ij p_ij log(p_ij / q_ij), p_ij = K(t_i, t_j) / sum_j K, K = (cos + 1) / 2"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [10000.0, 100000.0]}}
    search_source: ClassVar[str] = "Around the weight of CRD's tables."

    weight: Weight = 30000.0
    variant: Literal["paper", "code"] = "paper"

    def needs(self) -> Needs:
        """Embeddings on both sides."""
        return Needs.of_both_sides("embedding")

    def loss(self, step: Step, parts: Any) -> Loss:
        """Relation of all pairs of the global batch."""
        student = gather_with_grad(step.student[0]["embedding"])
        total = pkt_loss(student, gather_rows(step.teacher[0]["embedding"]))
        if self.variant == "paper":
            total = total * (len(student) / PUBLISHED_BATCH)
        return Loss(total)
