"""DIST: class probabilities correlate with the teacher's, within each image and, class by class, over the batch."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Temperature, Weight
from raydistill.methods.collectives import gather_rows, gather_with_grad
from raydistill.methods.logits import check_equal_classes, logits_of_student, logits_of_teachers
from raydistill.methods.precision import at_least_float32, no_autocast

_EPSILON = 1e-8


def dist_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, beta: float, gamma: float, temperature: float
) -> Tensor:
    """T^2 (beta (1 - mean_i r(p_i)) + gamma (1 - mean_c r(p_c))), r = Pearson's correlation of student and teacher.

    Huang et al. 2022, https://arxiv.org/abs/2205.10536: p = softmax(z / T); p_i is an image's row of [B, C], p_c a
    class's column. What does not vary, such as a column of zeros, has the correlation 0 and no
    gradient.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        beta: weight of the relation between classes, within each image.
        gamma: weight of the relation between images, within each class.
        temperature: T.

    Returns:
        A scalar.
    """
    with no_autocast(student_logits):
        student = F.softmax(at_least_float32(student_logits) / temperature, dim=1)
        teacher = F.softmax(at_least_float32(teacher_logits) / temperature, dim=1)
        between_classes = 1.0 - _correlation(student, teacher).mean()
        between_images = 1.0 - _correlation(student.T, teacher.T).mean()
        return temperature**2 * (beta * between_classes + gamma * between_images)


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Pearson's correlation of equally numbered rows: [N, D], [N, D] -> [N]."""
    return (_direction(left) * _direction(right)).sum(dim=1)


def _direction(rows: Tensor) -> Tensor:
    """Centre rows and scale them to length 1; those without variation become 0."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    # Below this only rounding is left, which has no direction and would send gradients of 1 / epsilon.
    least = (4.0 * torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows, dim=1, keepdim=True)).clamp_min(
        _EPSILON
    )
    return torch.where(length > least, centred / length.clamp_min(_EPSILON), 0.0)


class DIST(Method):
    """Distillation from a stronger teacher: correlations in place of divergences.

    The relation between images is taken over the global batch. ``temperature`` is the value for CIFAR-100; on
    ImageNet it is 1. It multiplies the loss by its square.
    """

    name: ClassVar[str] = "dist"
    paper: ClassVar[str] = "Huang et al., NeurIPS 2022, https://arxiv.org/abs/2205.10536"
    equation: ClassVar[str] = "T^2 (beta (1 - r within images) + gamma (1 - r within classes)), r of softmax(z / T)"
    search_space: ClassVar[SearchSpace] = {
        "beta": {"loguniform": [0.3, 3.0]},
        "gamma": {"loguniform": [0.3, 3.0]},
        "temperature": {"loguniform": [1.0, 8.0]},
    }
    search_source: ClassVar[str] = "Around the published values."

    beta: Weight = 1.0
    gamma: Weight = 1.0
    temperature: Temperature = 4.0
    standardise: bool = False

    def needs(self) -> Needs:
        """Logits on both sides."""
        return Needs.of_both_sides("logits")

    def needs_every_logit(self) -> str | None:
        """Correlations see the fill."""
        return "it correlates each class's probabilities over the batch, also those of classes that are left out"

    def check(self, setting: Setting) -> None:
        """Both sides must have the same classes."""
        check_equal_classes(self.name, setting)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Relations of the global batch."""
        return Loss(
            dist_loss(
                gather_with_grad(logits_of_student(step, standardise=self.standardise)),
                gather_rows(logits_of_teachers(step, standardise=self.standardise)[0]),
                beta=self.beta,
                gamma=self.gamma,
                temperature=self.temperature,
            )
        )
