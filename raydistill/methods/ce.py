"""Cross-entropy with the labels."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import F, Tensor
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Step
from raydistill.methods.precision import at_least_float32, no_autocast


class CrossEntropy(Method):
    """Cross-entropy of the student's logits [B, C] with the labels [B], optionally smoothed.

    Of an image that is mixed with another it is the mean over both labels, weighted by their shares.
    """

    name: ClassVar[str] = "ce"
    paper: ClassVar[str] = "Label smoothing: Szegedy et al., CVPR 2016, https://arxiv.org/abs/1512.00567"
    equation: ClassVar[str] = "-log softmax(z_s)[y]"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.1, 1.0]},
        "label_smoothing": {"uniform": [0.0, 0.2]},
    }
    search_source: ClassVar[str] = (
        "The weights of CRD's tables, 0.1 beside kd and 1 beside all else; smoothing around the published 0.1."
    )

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def needs(self) -> Needs:
        """Student logits and labels."""
        return Needs(student={0: frozenset({"logits"})}, columns=frozenset({"label"}))

    def refuses_mixing(self) -> None:
        """Both labels of a mixed image count."""

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch."""
        logits = step.student[0]["logits"]
        with no_autocast(logits):
            if "mix" not in step.columns:
                return Loss(self._entropies(logits, step.columns["label"]).mean())
            own, other = (self._entropies(logits, step.columns[name]) for name in ("label", "partner_label"))
            share = step.columns["mix"]
            return Loss((share * own + (1.0 - share) * other).mean())

    def _entropies(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each row, [B]."""
        return F.cross_entropy(at_least_float32(logits), labels, reduction="none", label_smoothing=self.label_smoothing)
