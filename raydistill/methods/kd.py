"""Knowledge distillation: the student's softened class probabilities follow the teacher's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Temperature, Weight
from raydistill.methods.logits import STANDARDISED, check_equal_classes, logits_of_student, logits_of_teachers
from raydistill.methods.precision import at_least_float32, no_autocast


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), mean over the batch.

    Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T; the factor T^2 keeps the gradient's size independent of it.

    Returns:
        A scalar.
    """
    with no_autocast(student_logits):
        student = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
        teacher = F.log_softmax(at_least_float32(teacher_logits) / temperature, dim=1)
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return divergence * temperature**2


def ensemble_logits(logits: Sequence[Tensor], *, temperature: float) -> Tensor:
    """Logits whose softened probabilities are the mean of those of all teachers.

    Args:
        logits: of each teacher, [B, C].
        temperature: T.

    Returns:
        T log mean_m softmax(z_m / T), [B, C]; one teacher's logits as they are.
    """
    if len(logits) == 1:
        return logits[0]
    with no_autocast(logits[0]):
        each = torch.stack([F.log_softmax(at_least_float32(found) / temperature, dim=1) for found in logits])
        return temperature * (each.logsumexp(dim=0) - math.log(len(logits)))


class KD(Method):
    """Hinton's distillation. With ``standardise`` only the logits' relations count, not their range.

    From several teachers, ``ensemble: mean`` distils one target, the mean of their softened probabilities (Hinton et
    al. 2015); ``sum`` adds one loss for each teacher, as Eq. 21 of CRD (Tian et al. 2020) does. Up to a constant
    ``sum`` is ``mean`` times the number of teachers, so that ``mean`` keeps the balance with other terms where the
    number of teachers changes. With one teacher both are the same.
    """

    name: ClassVar[str] = "kd"
    paper: ClassVar[str] = "Hinton et al., 2015, https://arxiv.org/abs/1503.02531"
    equation: ClassVar[str] = "T^2 KL(softmax(z_t / T) || softmax(z_s / T))"
    joins_teachers: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.3, 3.0]},
        "temperature": {"loguniform": [1.0, 20.0]},
    }
    search_source: ClassVar[str] = (
        "Temperatures from 1 to 20, the span of Hinton et al.'s experiments; around the weight of CRD's tables."
    )

    weight: Weight = 0.9
    temperature: Temperature = 4.0
    standardise: bool = False
    ensemble: Literal["mean", "sum"] = "mean"

    def needs(self) -> Needs:
        """Logits on both sides."""
        return Needs.of_both_sides("logits")

    def needs_every_logit(self) -> str | None:
        """Only the small probabilities change, unless logits are standardised."""
        return STANDARDISED if self.standardise else None

    def check(self, setting: Setting) -> None:
        """Both sides must have the same classes."""
        check_equal_classes(self.name, setting)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch; reports each teacher's loss where several are summed."""
        student = logits_of_student(step, standardise=self.standardise)
        teachers = logits_of_teachers(step, standardise=self.standardise)
        if self.ensemble == "mean":
            teachers = [ensemble_logits(teachers, temperature=self.temperature)]
        losses = [kd_loss(student, teacher, temperature=self.temperature) for teacher in teachers]
        if len(losses) == 1:
            return Loss(losses[0])
        return Loss(torch.stack(losses).sum(), terms={str(number): loss for number, loss in enumerate(losses)})
