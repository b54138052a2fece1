"""What methods that compare class scores share."""

from __future__ import annotations

from raydistill.errors import ConfigError
from raydistill.lazy import Tensor
from raydistill.methods.base import Setting, Step
from raydistill.methods.precision import at_least_float32, no_autocast

STANDARDISED = "standardised logits take mean and deviation of all logits"
"""Why the largest logits alone will not do."""


def standardise_logits(logits: Tensor) -> Tensor:
    """Give every row of [B, C] mean 0 and standard deviation 1 (Sun et al. 2024, arXiv 2403.01427)."""
    with no_autocast(logits):
        logits = at_least_float32(logits)
        return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def logits_of_student(step: Step, *, standardise: bool, view: int = 0) -> Tensor:
    """The student's logits [B, C] of a view, standardised where asked."""
    logits = step.student[view]["logits"]
    return standardise_logits(logits) if standardise else logits


def logits_of_teachers(step: Step, *, standardise: bool, view: int = 0) -> list[Tensor]:
    """Logits [B, C] of a view from every teacher of the step, standardised where asked."""
    found = [teacher[view]["logits"] for teacher in step.teachers]
    return [standardise_logits(logits) for logits in found] if standardise else found


def check_equal_classes(name: str, setting: Setting) -> None:
    """Raise ``ConfigError`` unless every teacher of the method ``name`` has as many logits as the student."""
    student = setting.student["logits"]
    for teacher in setting.teachers:
        if teacher["logits"] != student:
            raise ConfigError(
                f"methods.{name}: student and teacher must have equally many logits, not {student[0]} and"
                f" {teacher['logits'][0]}; choose a teacher of the student's classes, or a method on embeddings"
            )
