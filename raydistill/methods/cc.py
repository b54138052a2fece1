"""CC: correlation congruence, the kernel values between images agree for student and teacher."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Weight
from raydistill.methods.collectives import gather_with_grad
from raydistill.methods.contrast import unit
from raydistill.methods.precision import at_least_float32, no_autocast

Kernel = Literal["gaussian", "bilinear"]


def cc_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    variant: Literal["paper", "code"] = "code",
    kernel: Kernel = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
) -> Tensor:
    """|K_s - K_t|_F^2 / B^2, or what the public benchmark computes in its place.

    Peng et al. 2019, https://arxiv.org/abs/1904.01802. ``paper``: K is the matrix of all pairs' kernel values,
    ``gaussian``: the Taylor polynomial of ``order`` P of exp(-gamma |x - y|^2) on unit vectors, sum_p e^{-2 gamma}
    (2 gamma)^p / p! (x.y)^p; ``bilinear``: x.y, not normalised. ``code`` (RepDistiller): with d_i = |s_i - t_i|, the
    mean of d_i . d_{i+1} over consecutive samples; it has no kernel and depends on the order of the batch.

    Args:
        student_embedding: [B, D]; for ``code`` B is at least 2.
        teacher_embedding: [B, D].
        variant: which of the two.
        kernel: K of ``paper``.
        gamma: of the Gaussian kernel.
        order: P of the Gaussian kernel.

    Returns:
        A scalar.
    """
    with no_autocast(student_embedding):
        student, teacher = at_least_float32(student_embedding), at_least_float32(teacher_embedding)
        if variant == "code":
            apart = (student - teacher).abs()
            return (apart[:-1] * apart[1:]).sum(dim=1).mean()
        if kernel == "bilinear":
            return F.mse_loss(student @ student.T, teacher @ teacher.T)
        return F.mse_loss(_gaussian(student, gamma, order), _gaussian(teacher, gamma, order))


def _gaussian(rows: Tensor, gamma: float, order: int) -> Tensor:
    """Taylor polynomial of the Gaussian kernel of all pairs: [B, D] -> [B, B]."""
    rows = unit(rows)
    cosine = rows @ rows.T
    terms = [(2.0 * gamma) ** power / math.factorial(power) * cosine**power for power in range(order + 1)]
    return math.exp(-2.0 * gamma) * torch.stack(terms).sum(dim=0)


class CC(Method):
    """Correlation congruence between linear embeddings of both sides, both trained, over the global batch.

    ``variant: code`` is the default because ``weight`` is the benchmark's 0.02, which was published with it; its
    loss, over consecutive samples of the global batch, is not the paper's (see ``cc_loss``). The values of ``paper``
    are mostly below 0.1 with the ``gaussian`` kernel and need a much larger weight. As both heads are
    trained, either form can be satisfied by constant embeddings; it regularises beside another loss.
    """

    name: ClassVar[str] = "cc"
    paper: ClassVar[str] = "Peng et al., ICCV 2019, https://arxiv.org/abs/1904.01802"
    equation: ClassVar[str] = "code: mean_i |s_i - t_i| . |s_i+1 - t_i+1|; paper: |K_s - K_t|^2 / B^2"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [0.006, 0.06]}}
    search_source: ClassVar[str] = "Around the weight of CRD's tables."

    weight: Weight = 0.02
    dimension: Annotated[int, Field(ge=1)] = 128
    variant: Literal["paper", "code"] = "code"
    kernel: Kernel = "gaussian"
    gamma: Annotated[float, Field(gt=0.0)] = 0.4
    order: Annotated[int, Field(ge=1)] = 2

    def needs(self) -> Needs:
        """Embeddings on both sides."""
        return Needs.of_both_sides("embedding")

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """A linear embedding for each side, both trained."""
        from raydistill.methods.state import seeded

        with seeded(setting.seed):
            student = nn.Linear(setting.student["embedding"][0], self.dimension)
            teacher = nn.Linear(setting.teacher["embedding"][0], self.dimension)
        return nn.ModuleDict({"student": student, "teacher": teacher})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Relation of the samples of the global batch."""
        return Loss(
            cc_loss(
                gather_with_grad(parts["student"](step.student[0]["embedding"])),
                gather_with_grad(parts["teacher"](step.teacher[0]["embedding"])),
                variant=self.variant,
                kernel=self.kernel,
                gamma=self.gamma,
                order=self.order,
            )
        )
