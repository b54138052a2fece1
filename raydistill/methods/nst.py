"""NST: the student's channels are distributed like the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.base import Loss, Method, SearchSpace, Step, Weight
from raydistill.methods.maps import same_size
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.stages import SeveralStages


def nst_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Squared maximum mean discrepancy of unit channels f_c, kernel k(x, y) = (x . y)^2, summed over levels.

    mean_cc' k(s_c, s_c') + mean_cc' k(t_c, t_c') - 2 mean_cc' k(s_c, t_c'), mean over the batch; each channel is a
    vector of H W places. Huang and Wang 2017, https://arxiv.org/abs/1707.01219, Eq. 5 with the polynomial kernel
    of degree 2 and c = 0.

    Pairs of channels are never laid out with their places: sum_cc' (x_c . y_c')^2 = |X Y^T|_F^2 =
    <X^T X, Y^T Y>_F for X [C, P], Y [C', P]. The smaller kind of product is taken, so that memory is
    B min(P, max(C, C'))^2 and not B C C' P.

    Args:
        student_features: maps [B, C_i, H_i, W_i].
        teacher_features: as many maps [B, C'_i, H'_i, W'_i]; the larger of a pair is average-pooled.

    Returns:
        A scalar.
    """
    levels = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        with no_autocast(student):
            pair = same_size(at_least_float32(student), at_least_float32(teacher))
            levels.append(discrepancy(*(F.normalize(maps.flatten(2), dim=2) for maps in pair)))
    return torch.stack(levels).sum()


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared discrepancy under (x . y)^2 of unit channels [B, C, P] and [B, C', P], mean over the batch."""
    places, channels = student.shape[2], (student.shape[1], teacher.shape[1])
    if places <= max(channels):
        difference = student.mT @ student / channels[0] - teacher.mT @ teacher / channels[1]
        return difference.square().sum(dim=(1, 2)).mean()
    within = _mean_kernel(student, student) + _mean_kernel(teacher, teacher)
    return within - 2 * _mean_kernel(student, teacher)


def _mean_kernel(left: Tensor, right: Tensor) -> Tensor:
    return (left @ right.mT).square().mean()


class NST(SeveralStages, Method):
    """Neuron selectivity transfer: where each channel responds, over all channels, as a distribution to match.

    The polynomial kernel of the paper's experiments (degree 2, c = 0), as in the public code, which gives the
    same values with more memory. ``weight`` is that of the comparisons in later papers, which use all stages.
    """

    name: ClassVar[str] = "nst"
    paper: ClassVar[str] = "Huang and Wang, 2017, https://arxiv.org/abs/1707.01219"
    equation: ClassVar[str] = "sum_i |S^T S / C_s - T^T T / C_t|_F^2, S [C_s, H W] and T [C_t, H W] with unit rows"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [15.0, 150.0]}}
    search_source: ClassVar[str] = "Around the weight of CRD's tables."

    weight: Weight = 50.0

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum over the stages, mean over the batch."""
        return Loss(nst_loss(self.student_maps(step), self.teacher_maps(step)))
