"""LCKT: optimal transport between the batch's embeddings, the local half of WCoRD."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import Tensor, nn
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Weight
from raydistill.methods.collectives import gather_rows, gather_with_grad
from raydistill.methods.contrast import unit
from raydistill.methods.precision import no_autocast

Epsilon = Annotated[float, Field(gt=0.0)]
Iterations = Annotated[int, Field(ge=1)]


def transport_plan(cost: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Plan P that minimises <P, C> - epsilon H(P) with uniform marginals, by Sinkhorn's iterations.

    Cuturi 2013, https://arxiv.org/abs/1306.0895, on logarithms, which no cost can overflow. Columns sum to 1 / M
    exactly, rows to 1 / N when the iterations have converged.

    Args:
        cost: C, [N, M].
        epsilon: weight of the entropy; the smaller, the sharper the plan and the more iterations.
        iterations: passes over rows, then columns.

    Returns:
        P, [N, M], sums to 1.
    """
    rows, columns = cost.shape
    scaled = -cost / epsilon
    column_scale = scaled.new_zeros(columns)
    for _ in range(iterations):
        row_scale = -math.log(rows) - (scaled + column_scale).logsumexp(dim=1, keepdim=True)
        column_scale = -math.log(columns) - (scaled + row_scale).logsumexp(dim=0)
    return (scaled + row_scale + column_scale).exp()


def lckt_loss(student_embedding: Tensor, teacher_embedding: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """<P, C> with C_ij = 1 - cos(s_i, t_j) and the plan P of entropic transport between both batches.

    Chen et al. 2021, https://arxiv.org/abs/2012.08674, the primal form of the Wasserstein distance. The gradient
    holds P fixed: at Sinkhorn's fixed point that is the gradient of the regularised distance <P, C> - epsilon H(P).
    Which row of one batch belongs to which of the other does not count.

    Args:
        student_embedding: s, [B, D].
        teacher_embedding: t, [B', D].
        epsilon: weight of the entropy.
        iterations: of Sinkhorn's algorithm.

    Returns:
        A scalar from 0 to 2.
    """
    with no_autocast(student_embedding):
        cost = 1.0 - unit(student_embedding) @ unit(teacher_embedding).T
        plan = transport_plan(cost.detach(), epsilon=epsilon, iterations=iterations)
        return (plan * cost).sum()


class LCKT(Method):
    """Local contrastive knowledge transfer: the batch's student embeddings are moved to the teacher's at least cost.

    Entropic optimal transport over the global batch; a linear head gives the student the teacher's width, the
    teacher's embedding stays as it is, since two trained heads could agree on a point. No code of the authors is
    public; ``weight``, ``epsilon``, ``iterations`` and the head are choices made here.
    """

    name: ClassVar[str] = "lckt"
    paper: ClassVar[str] = "Chen et al., CVPR 2021 (WCoRD), https://arxiv.org/abs/2012.08674"
    equation: ClassVar[str] = "<P, C>, C_ij = 1 - cos(W s_i + b, t_j), P = argmin <P, C> - epsilon H(P)"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.015, 0.15]},
        "epsilon": {"loguniform": [0.015, 0.15]},
    }
    search_source: ClassVar[str] = "Around the default weight; entropy from sharp to smooth plans."

    weight: Weight = 0.05
    epsilon: Epsilon = 0.05
    iterations: Iterations = 50

    def needs(self) -> Needs:
        """Embeddings on both sides."""
        return Needs.of_both_sides("embedding")

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The student's head, trained."""
        from raydistill.methods.state import seeded

        with seeded(setting.seed):
            return nn.ModuleDict({"head": nn.Linear(setting.student["embedding"][0], setting.teacher["embedding"][0])})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Transport cost of the global batch."""
        student = gather_with_grad(parts["head"](step.student[0]["embedding"]))
        teacher = gather_rows(step.teacher[0]["embedding"])
        return Loss(lckt_loss(student, teacher, epsilon=self.epsilon, iterations=self.iterations))
