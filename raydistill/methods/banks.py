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

WHOLE_BANK_RATIO = 20
"""Scores with the whole bank are faster up to this ratio of its size to K; experiments/benchmarks/methods.py."""
_BLOCK = 1 << 21
"""Numbers that are read from the bank at a time."""

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
    """<embedding, bank[index]>, each sample with rows of its own: [B, D], [M, D], [B, K] -> [B, K].

    The rows [B, K, D] are never laid out together: either all products with the bank are computed and those asked
    for picked out, or the rows are read for a few samples at a time, and once more in the backward pass.
    """
    with no_autocast(embedding):
        embedding, bank = at_least_float32(embedding), at_least_float32(bank)
        if len(bank) <= WHOLE_BANK_RATIO * index.shape[1]:
            return (embedding @ bank.T).gather(1, index)
        return read_similarity(embedding, bank, index)


def read_similarity(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    """``sampled_similarity`` by reading the rows asked for, which pays where they are few among many."""
    from torch.utils.checkpoint import checkpoint

    samples = max(1, _BLOCK // (index.shape[1] * bank.shape[1]))
    blocks = zip(torch.split(embedding, samples), torch.split(index, samples), strict=True)
    return torch.cat(
        [
            checkpoint(_read_block, own, bank, rows, use_reentrant=False, preserve_rng_state=False)
            for own, rows in blocks
        ]
    )


def _read_block(embedding: Tensor, bank: Tensor, index: Tensor) -> Tensor:
    rows = bank.index_select(0, index.flatten()).view(*index.shape, -1)
    return torch.bmm(embedding[:, None], rows.mT)[:, 0]


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
