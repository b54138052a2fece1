"""What CRD and its relatives share: heads, two banks of the whole training set, drawn negatives.

Inherit from ``BankContrast`` in front of ``Method``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from raydistill.errors import ConfigError
from raydistill.lazy import Tensor, nn, torch
from raydistill.methods.base import Momentum, Needs, SearchSpace, Setting, Step, Temperature
from raydistill.methods.collectives import gather_rows
from raydistill.methods.contrast import unit
from raydistill.methods.precision import at_least_float32, no_autocast

BANK_SPACE: SearchSpace = {
    "temperature": {"loguniform": [0.02, 0.3]},
    "negatives": {"choice": [16, 64, 256, 1024, 4096]},
}
"""CRD's Figure 5, but for 16384 negatives: of ten classes they need 18205 images, and the paper gains 0.1 % by them."""


@dataclass(frozen=True)
class Compared:
    """Inner products of each sample with its own row, in column 0, and its negatives' rows of the other's bank."""

    student: Tensor
    """Student embeddings with the teacher's bank, [B, K + 1]."""
    teacher: Tensor
    """Teacher embeddings with the student's bank, [B, K + 1]."""
    carry: Mapping[str, Tensor]
    """What ``after_step`` puts into the banks."""


def sampled_similarity(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """<embedding, bank[index]>, each sample with rows of its own: [B, D], [M, D], [B, K] -> [B, K]."""
    from raydistill.methods.sampled import sampled_products

    with no_autocast(embedding):
        return sampled_products(at_least_float32(embedding), at_least_float32(bank), index)


class BankContrast(BaseModel):
    """Linear embeddings of both sides and a bank for each, M x ``dimension``, of what was last seen of each sample."""

    name: ClassVar[str]

    temperature: Temperature = 0.1
    negatives: Annotated[int, Field(ge=1)] = 16384
    momentum: Momentum = 0.5
    dimension: Annotated[int, Field(ge=1)] = 128
    exclude: Literal["instance", "class"] = "class"

    def needs(self) -> Needs:
        """Embeddings on both sides and the samples' positions."""
        return Needs.of_both_sides("embedding", columns=frozenset({"index"}))

    def check(self, setting: Setting) -> None:
        """There must be enough samples to draw the negatives from."""
        if self.exclude == "class" and setting.labels is None:
            raise ConfigError(f"methods.{self.name}.exclude: 'class' needs labels; use 'instance'")
        groups = self._groups(setting)
        own = 1 if groups is None else int(torch.bincount(groups).max())
        most = setting.num_samples - own
        if self.negatives > most:
            raise ConfigError(
                f"methods.{self.name}.negatives: {self.negatives} is too many; with exclude"
                f" '{self.exclude}' the {setting.num_samples} samples allow at most {most}"
            )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """Linear embeddings of both sides, both trained; the two banks and the sampler."""
        from raydistill.methods.negatives import NegativeSampler
        from raydistill.methods.state import MemoryBank, seeded

        size, seed = setting.num_samples, setting.seed
        with seeded(seed):
            student = nn.Linear(setting.student["embedding"][0], self.dimension)
            teacher = nn.Linear(setting.teacher["embedding"][0], self.dimension)
        return nn.ModuleDict(
            {
                "student": student,
                "teacher": teacher,
                "student_bank": MemoryBank(size, self.dimension, seed),
                "teacher_bank": MemoryBank(size, self.dimension, seed + 1),
                "sampler": NegativeSampler(size, self._groups(setting), self.negatives, seed),
            }
        )

    def compare(self, step: Step, parts: Any) -> Compared:
        """Embed both sides and compare each with the other's bank, at the same positions."""
        index = step.columns["index"]
        student = self.embed(parts["student"], step.student[0]["embedding"])
        teacher = self.embed(parts["teacher"], step.teacher[0]["embedding"])
        chosen = torch.cat([index[:, None], parts["sampler"](index, step.epoch)], dim=1)
        return Compared(
            student=sampled_similarity(student, parts["teacher_bank"].rows, chosen),
            teacher=sampled_similarity(teacher, parts["student_bank"].rows, chosen),
            carry={"index": index, "student": student.detach(), "teacher": teacher.detach()},
        )

    def embed(self, head: nn.Module, embedding: Tensor) -> Tensor:
        """Embed one side: [B, D] -> unit rows [B, dimension]."""
        return unit(head(embedding))

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Move the banks' rows of the global batch."""
        index = gather_rows(carry["index"])
        parts["student_bank"].update(index, gather_rows(carry["student"]), self.momentum)
        parts["teacher_bank"].update(index, gather_rows(carry["teacher"]), self.momentum)

    def _groups(self, setting: Setting) -> Tensor | None:
        return setting.labels if self.exclude == "class" else None
