"""DINO: self-distillation without labels, from large crops to all crops of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Momentum, Needs, SearchSpace, Setting, Step, Temperature
from raydistill.methods.crops import over_other_views, soft_cross_entropy
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.prototypes import assignment_entropy
from raydistill.methods.schedules import warm_up
from raydistill.methods.self_distillation import SelfDistillation, move_center


def dino_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    crops: int,
) -> Tensor:
    """-sum_k softmax((z_t - c) / T_t) log softmax(z_s / T_s), mean over the batch and all pairs of two crops.

    Caron et al. 2021, https://arxiv.org/abs/2104.14294, Eq. 3 and Algorithm 1. Only the student takes a gradient.

    Args:
        student_logits: z_s, [crops * B, K], crop by crop, the two large ones first.
        teacher_logits: z_t, [2 * B, K], of the two large crops.
        center: c, [K].
        student_temperature: T_s.
        teacher_temperature: T_t.
        crops: number of the student's crops.

    Returns:
        A scalar.
    """
    with no_autocast(student_logits):
        centred = at_least_float32(teacher_logits.detach()) - center
        teacher = F.softmax(centred / teacher_temperature, dim=1)
        student = at_least_float32(student_logits) / student_temperature
        return over_other_views(soft_cross_entropy, student, teacher, crops=crops)


class DINO(SelfDistillation, Method):
    """The student's small and large crops predict what its averaged copy makes of the large ones.

    No teacher is given: it is the average of the student and its head, with a ``momentum`` that rises to 1 along
    a cosine over the run. Views 0 and 1 are large crops, the following ``local_crops`` small ones. What keeps the
    outputs from collapsing: the teacher's low temperature, which grows to ``teacher_temperature`` over
    ``teacher_temperature_warmup`` epochs, and its centre, an average of its outputs over the global batch.

    The head's prototypes do not move in the first ``freeze_last_layer`` epochs; ``norm_last_layer`` keeps them at
    length 1. ``prototypes`` is the paper's 65536, which for small data and machines is more than needed.
    Temperatures are the paper's; the public code's own default is 0.04 throughout. It runs crops of equal size
    through the network together, here each crop gives batch statistics of its own, for student and teacher alike.

    The term ``entropy`` says how evenly images choose their nearest prototype: near 0 they all choose one. A loss that
    stays at log ``prototypes`` is the other collapse, outputs that are uniform for every image.
    """

    name: ClassVar[str] = "dino"
    paper: ClassVar[str] = "Caron et al., ICCV 2021, https://arxiv.org/abs/2104.14294"
    equation: ClassVar[str] = "-sum_k softmax((z_t - c) / T_t) log softmax(z_s / T_s), over pairs of two crops"
    search_space: ClassVar[SearchSpace] = {
        "teacher_temperature": {"uniform": [0.04, 0.08]},
        "center_momentum": {"choice": [0.0, 0.9, 0.99]},
        "momentum": {"choice": [0.99, 0.996, 0.999]},
    }
    search_source: ClassVar[str] = "Around the published values."

    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.07
    teacher_temperature_start: Temperature = 0.04
    teacher_temperature_warmup: Annotated[int, Field(ge=0)] = 30
    center_momentum: Momentum = 0.9

    def needs(self) -> Needs:
        """The student's embedding of all crops, the images of the large ones."""
        return self.self_needs()

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The head, which is trained; the averaged teacher and its centre."""
        from raydistill.methods.state import Value

        return nn.ModuleDict(self.self_parts(setting) | {"center": Value(torch.zeros(self.prototypes))})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch and the pairs of crops; carries the mean of the teacher's scores."""
        student, teacher = self.student_scores(step, parts), self.teacher_scores(step, parts)
        total = dino_loss(
            student,
            teacher,
            parts["center"].value,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature_at(step.epoch),
            crops=self.crops,
        )
        return Loss(
            total,
            terms={"entropy": assignment_entropy(student.chunk(self.crops)[0])},
            carry={"mean": teacher.mean(dim=0), "momentum": self.momentum_at(step.progress)},
        )

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Move the centre by the global batch, then the teacher."""
        move_center(parts["center"], carry["mean"], self.center_momentum)
        parts["teacher"].follow(student, parts["head"], carry["momentum"])

    def teacher_temperature_at(self, epoch: int) -> float:
        """The teacher's temperature in an epoch, counted from 0."""
        return warm_up(self.teacher_temperature_start, self.teacher_temperature, epoch, self.teacher_temperature_warmup)
