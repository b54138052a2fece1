"""Knowledge distillation: the student's softened class probabilities follow the teacher's."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.lazy import F, Tensor
from raydistill.methods.base import Loss, Method, Needs, Step, Temperature, Weight
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


def standardise_logits(logits: Tensor) -> Tensor:
    """Give every row of [B, C] mean 0 and standard deviation 1 (Sun et al. 2024, arXiv 2403.01427)."""
    logits = at_least_float32(logits)
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


class KD(Method):
    """Hinton's distillation. With ``standardise`` only the logits' relations count, not their range."""

    name: ClassVar[str] = "kd"
    paper: ClassVar[str] = "Hinton et al., 2015, https://arxiv.org/abs/1503.02531"
    equation: ClassVar[str] = "T^2 KL(softmax(z_t / T) || softmax(z_s / T))"

    weight: Weight = 0.9
    temperature: Temperature = 4.0
    standardise: bool = False

    def needs(self) -> Needs:
        """Logits on both sides."""
        logits = {0: frozenset({"logits"})}
        return Needs(student=logits, teacher=logits)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch."""
        student, teacher = step.student[0]["logits"], step.teacher[0]["logits"]
        if self.standardise:
            with no_autocast(student):
                student, teacher = standardise_logits(student), standardise_logits(teacher)
        return Loss(kd_loss(student, teacher, temperature=self.temperature))
