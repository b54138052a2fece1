"""SEED: the student repeats the teacher's similarities to its own key and to a queue of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import Tensor, nn
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step, Temperature
from raydistill.methods.collectives import gather_rows
from raydistill.methods.contrast import unit
from raydistill.methods.key_softmax import attend, log_sum
from raydistill.methods.precision import no_autocast


def seed_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    queue: Tensor,
    *,
    student_temperature: float,
    teacher_temperature: float,
    own_key: bool = True,
) -> Tensor:
    """Cross-entropy of softmax(s.k / T_s) to softmax(t.k / T_t), mean over the batch.

    k are the teacher's own embedding of the image, for which t.k = 1, and the queue. Fang et al. 2021,
    https://arxiv.org/abs/2101.04731. Without ``own_key`` it is the loss of ReSSL (Zheng et al. 2021). The queue is
    read in blocks and never copied, scores [B, Q] never laid out; no gradient reaches the teacher or the queue.

    Args:
        student_embedding: s, [B, D], L2-normalised inside.
        teacher_embedding: t, [B, D], L2-normalised inside.
        queue: [Q, D], as it is.
        student_temperature: T_s.
        teacher_temperature: T_t.
        own_key: whether the teacher's own embedding is one of the keys.

    Returns:
        A scalar.
    """
    with no_autocast(student_embedding):
        key = unit(teacher_embedding.detach())
        student, teacher = unit(student_embedding) / student_temperature, key / teacher_temperature
        found, wanted = attend([(student, queue), (teacher, queue)], queue)
        if own_key:
            found = found.including((student * key).sum(dim=1), key)
            wanted = wanted.including((teacher * key).sum(dim=1), key)
        return (log_sum(student, found) - (student * wanted.mean_value).sum(dim=1)).mean()


class SEED(Method):
    """Distillation without labels against one queue of teacher embeddings, among which the image's own is one.

    The student gets a head Linear-ReLU-Linear to the teacher's width, as in the public code; the teacher's
    embedding is taken as the experiment's teacher gives it, where SEED's teachers end in a head of 128 outputs of
    their own. Keys enter the queue after the loss. ``teacher_temperature`` is the paper's 0.01; the public code's
    1e-4 makes the target nearly one-hot, which is InfoNCE with the teacher's key. ``own_key: false`` leaves the
    image's own key out (ReSSL).
    """

    name: ClassVar[str] = "seed"
    paper: ClassVar[str] = "Fang et al., ICLR 2021, https://arxiv.org/abs/2101.04731"
    equation: ClassVar[str] = "-sum_j softmax_j(t.k / T_t) log softmax_j(s.k / T_s), k = (t, queue)"
    search_space: ClassVar[SearchSpace] = {
        "student_temperature": {"loguniform": [0.05, 0.5]},
        "teacher_temperature": {"loguniform": [0.005, 0.1]},
        "queue": {"choice": [256, 1024, 4096, 16384, 65536]},
    }
    search_source: ClassVar[str] = "Around the published values; fewer keys for smaller sets."

    student_temperature: Temperature = 0.2
    teacher_temperature: Temperature = 0.01
    queue: Annotated[int, Field(ge=1)] = 65536
    own_key: bool = True

    def needs(self) -> Needs:
        """Embeddings on both sides."""
        return Needs.of_both_sides("embedding")

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The student's head, trained, and the teacher's queue."""
        from raydistill.methods.state import KeyQueue, seeded

        student, teacher = setting.student["embedding"][0], setting.teacher["embedding"][0]
        with seeded(setting.seed):
            head = nn.Sequential(nn.Linear(student, student), nn.ReLU(inplace=True), nn.Linear(student, teacher))
        return nn.ModuleDict({"head": head, "queue": KeyQueue(self.queue, teacher, setting.seed)})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch; carries the teacher's keys."""
        teacher = step.teacher[0]["embedding"]
        total = seed_loss(
            parts["head"](step.student[0]["embedding"]),
            teacher,
            parts["queue"].keys,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            own_key=self.own_key,
        )
        return Loss(total, carry={"teacher": unit(teacher)})

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Enqueue the global batch's keys."""
        parts["queue"].enqueue(gather_rows(carry["teacher"]))
