"""Reg: a linear head on the student predicts the teacher's embedding."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.lazy import F, nn
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step
from raydistill.methods.precision import at_least_float32, no_autocast


class Regression(Method):
    """Mean squared error of a linear head on the student's embedding to the teacher's, as it is.

    A baseline without labels of CompRess, section 4.2; FitNet's idea on the embedding alone. The mean is over
    samples and the teacher's dimensions.
    """

    name: ClassVar[str] = "reg"
    paper: ClassVar[str] = "Koohpayegani et al., NeurIPS 2020, https://arxiv.org/abs/2010.14713, section 4.2"
    equation: ClassVar[str] = "mean (W s + b - t)^2"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [0.3, 3.0]}}
    search_source: ClassVar[str] = "Around the default."

    def needs(self) -> Needs:
        """Embeddings on both sides."""
        return Needs.of_both_sides("embedding")

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The head, trained."""
        from raydistill.methods.state import seeded

        with seeded(setting.seed):
            return nn.ModuleDict({"head": nn.Linear(setting.student["embedding"][0], setting.teacher["embedding"][0])})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch."""
        predicted = parts["head"](step.student[0]["embedding"])
        with no_autocast(predicted):
            return Loss(F.mse_loss(at_least_float32(predicted), at_least_float32(step.teacher[0]["embedding"])))
