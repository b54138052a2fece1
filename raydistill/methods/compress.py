"""CompRess: the student repeats the teacher's similarities of an image to a queue of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.lazy import Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Momentum, Needs, SearchSpace, Setting, Step, Temperature
from raydistill.methods.collectives import gather_rows
from raydistill.methods.contrast import unit
from raydistill.methods.key_softmax import attend, log_sum
from raydistill.methods.precision import no_autocast


def compress_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_anchors: Tensor,
    teacher_anchors: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """KL(softmax(t.A_t / T) || softmax(s.A_s / T)), mean over the batch (the paper sums).

    Koohpayegani et al. 2020, https://arxiv.org/abs/2010.14713, Eq. 1 and 2. Anchors are read in blocks and never
    copied, scores [B, Q] never laid out; no gradient reaches the teacher's side or the anchors.

    Args:
        student_embedding: s, [B, D_s], L2-normalised inside.
        teacher_embedding: t, [B, D_t], L2-normalised inside.
        student_anchors: A_s, [Q, D_s], as they are; those of the teacher where both sides share one queue.
        teacher_anchors: A_t, [Q, D_t], as they are.
        temperature: T.

    Returns:
        A scalar.
    """
    with no_autocast(student_embedding):
        student, teacher = unit(student_embedding) / temperature, unit(teacher_embedding) / temperature
        found, wanted = attend([(student, student_anchors), (teacher, teacher_anchors)], student_anchors)
        # sum_j p_j log q_j, q the student's: its scores are linear in s, so the mean anchor is all that counts.
        likelihood = (student * wanted.mean_value).sum(dim=1) - log_sum(student, found)
        return (wanted.mean_score - wanted.log_sum - likelihood).mean()


class CompRes(Method):
    """Distillation without labels, from the teacher's embeddings alone.

    ``queues: 2q`` compares each side with a queue of its own; the student's is filled by a copy of the
    student that follows it with ``momentum``, or by the student itself where ``momentum`` is 0 (as good in
    the paper and without the second forward). ``1q`` compares both with the teacher's queue; a linear head,
    always there as in the public code, gives the student the teacher's width.

    Similarities are taken before the batch enters the queue, so an image is not among its own anchors.
    ``queue`` may be longer than the training set, which then holds images several times. The queue starts
    with random unit vectors, the public code's with uniform values; both are gone after ``queue`` images.
    ``temperature``: 0.007 for SwAV.
    """

    name: ClassVar[str] = "compress"
    paper: ClassVar[str] = "Koohpayegani et al., NeurIPS 2020, https://arxiv.org/abs/2010.14713"
    equation: ClassVar[str] = "KL(softmax(t.A_t / T) || softmax(s.A_s / T))"
    search_space: ClassVar[SearchSpace] = {
        "temperature": {"loguniform": [0.007, 1.0]},
        "queue": {"choice": [256, 1024, 4096, 16384, 65536, 128000]},
        "momentum": {"choice": [0.0, 0.5, 0.7, 0.999]},
    }
    search_source: ClassVar[str] = (
        "Figure 3a for the temperature, 0.02 to 1, down to the 0.007 for SwAV; section 4.5 for the momentum; a "
        "queue from a batch of 256, which section 3 finds too small, to the published 128000 (Figure 3b)."
    )

    temperature: Temperature = 0.04
    queue: Annotated[int, Field(ge=1)] = 128000
    queues: Literal["1q", "2q"] = "2q"
    momentum: Momentum = 0.999

    def needs(self) -> Needs:
        """Embeddings on both sides; with a momentum copy also the images."""
        embedding = {0: frozenset({"embedding"})}
        images = frozenset({0}) if self._has_copy else frozenset[int]()
        return Needs(student=embedding, teacher=embedding, images=images)

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The queues; with ``1q`` the head, with ``2q`` and a momentum the copy of the student."""
        from raydistill.methods.state import KeyQueue, frozen_copy, seeded

        student, teacher = setting.student["embedding"][0], setting.teacher["embedding"][0]
        parts: dict[str, nn.Module] = {"teacher_queue": KeyQueue(self.queue, teacher, setting.seed)}
        if self.queues == "1q":
            with seeded(setting.seed):
                parts["head"] = nn.Linear(student, teacher)
        else:
            parts["student_queue"] = KeyQueue(self.queue, student, setting.seed + 1)
        if self._has_copy:
            parts["key_network"] = frozen_copy(setting.student_network)
        return nn.ModuleDict(parts)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch; carries the keys of this batch."""
        student, teacher = step.student[0]["embedding"], step.teacher[0]["embedding"]
        teacher_anchors = parts["teacher_queue"].keys
        carry = {"teacher": unit(teacher)}
        if self.queues == "1q":
            student, student_anchors = parts["head"](student), teacher_anchors
        else:
            student_anchors = parts["student_queue"].keys
            carry["student"] = self._student_keys(step, parts)
        total = compress_loss(student, teacher, student_anchors, teacher_anchors, temperature=self.temperature)
        return Loss(total, carry=carry)

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Enqueue the global batch's keys, then let the copy follow the student."""
        from raydistill.methods.state import move_average

        parts["teacher_queue"].enqueue(gather_rows(carry["teacher"]))
        if self.queues == "2q":
            parts["student_queue"].enqueue(gather_rows(carry["student"]))
        if self._has_copy:
            move_average(parts["key_network"], student, self.momentum)

    @property
    def _has_copy(self) -> bool:
        return self.queues == "2q" and self.momentum > 0.0

    def _student_keys(self, step: Step, parts: Any) -> Tensor:
        """Keys of the batch for the student's queue: unit rows [B, D_s] without a gradient."""
        if not self._has_copy:
            return unit(step.student[0]["embedding"].detach())
        with torch.no_grad():
            return unit(parts["key_network"](step.views[0], outputs=("embedding",))["embedding"])
