"""Cross-entropy with the labels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import F
from raydistill.methods.base import Loss, Method, Needs, Step
from raydistill.methods.precision import at_least_float32, no_autocast


class CrossEntropy(Method):
    """Cross-entropy of the student's logits [B, C] with the labels [B], optionally smoothed."""

    name: ClassVar[str] = "ce"
    paper: ClassVar[str] = "Label smoothing: Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567"
    equation: ClassVar[str] = "-log softmax(z_s)[y]"

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def needs(self) -> Needs:
        """Student logits and labels."""
        return Needs(student={0: frozenset({"logits"})}, columns=frozenset({"label"}))

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch."""
        logits = step.student[0]["logits"]
        with no_autocast(logits):
            total = F.cross_entropy(
                at_least_float32(logits), step.columns["label"], label_smoothing=self.label_smoothing
            )
            return Loss(total)
