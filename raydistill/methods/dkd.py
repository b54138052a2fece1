"""DKD: the divergence of KD taken apart into the target class and the relations among all others."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import Tensor, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Temperature, Weight
from raydistill.methods.kd import kd_loss
from raydistill.methods.logits import check_equal_classes, logits_of_student, logits_of_teachers
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.schedules import grown


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, alpha: float, beta: float, temperature: float
) -> Tensor:
    """T^2 (alpha KL(b_t || b_s) + beta KL(o_t || o_s)), mean over the batch.

    Zhao et al. 2022, https://arxiv.org/abs/2203.08679: b is the probability of the label against that
    of all other classes together, o the distribution among the others; both from logits divided by T.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        labels: int64 [B].
        alpha: weight of the target class.
        beta: weight of the others.
        temperature: T.

    Returns:
        A scalar.
    """
    with no_autocast(student_logits):
        student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits)
        student_others, teacher_others = _without_label(student, labels), _without_label(teacher, labels)
        target = kd_loss(
            _label_against_others(student, student_others, labels, temperature),
            _label_against_others(teacher, teacher_others, labels, temperature),
            temperature=temperature,
        )
        others = kd_loss(student_others, teacher_others, temperature=temperature)
        return alpha * target + beta * others


def _without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits of all classes but the label: [B, C] -> [B, C - 1]."""
    places = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, places + (places >= labels[:, None]))


def _label_against_others(logits: Tensor, others: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Logits [B, 2] that soften to the probability of the label and to that of all other classes together."""
    label = logits.gather(1, labels[:, None])
    return torch.cat([label, temperature * (others / temperature).logsumexp(dim=1, keepdim=True)], dim=1)


class DKD(Method):
    """Decoupled distillation; ``warmup`` lets the loss grow over that many epochs, the first one at 1 / ``warmup``.

    ``alpha`` weighs the target class, ``beta`` the relations among the others; the values are those for CIFAR-100.
    """

    name: ClassVar[str] = "dkd"
    paper: ClassVar[str] = "Zhao et al., CVPR 2022, https://arxiv.org/abs/2203.08679"
    equation: ClassVar[str] = "min(epoch / warmup, 1) T^2 (alpha KL(target || others) + beta KL(among others))"
    search_space: ClassVar[SearchSpace] = {
        "alpha": {"loguniform": [0.3, 3.0]},
        "beta": {"uniform": [1.0, 10.0]},
        "temperature": {"loguniform": [1.0, 8.0]},
    }
    search_source: ClassVar[str] = "Around the published values."

    alpha: Weight = 1.0
    beta: Weight = 8.0
    temperature: Temperature = 4.0
    warmup: Annotated[int, Field(ge=0)] = 20
    standardise: bool = False

    def needs(self) -> Needs:
        """Logits on both sides and labels."""
        return Needs.of_both_sides("logits", columns=frozenset({"label"}))

    def needs_every_logit(self) -> str | None:
        """The second term sees the fill."""
        return "it compares the relations among all classes but the label, where those that are left out weigh most"

    def check(self, setting: Setting) -> None:
        """Both sides must have the same classes."""
        check_equal_classes(self.name, setting)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch."""
        total = dkd_loss(
            logits_of_student(step, standardise=self.standardise),
            logits_of_teachers(step, standardise=self.standardise)[0],
            step.columns["label"],
            alpha=self.alpha,
            beta=self.beta,
            temperature=self.temperature,
        )
        return Loss(total * grown(step.epoch, self.warmup))
