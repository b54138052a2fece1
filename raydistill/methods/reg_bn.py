"""Reg-BN: as Reg, after a batch norm without parameters on both sides."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, nn
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step
from raydistill.methods.collectives import gather_rows, gather_with_grad
from raydistill.methods.precision import at_least_float32, no_autocast


def standardise_dimensions(rows: Tensor) -> Tensor:
    """Give every dimension of [B, D] mean 0 and variance 1 over the batch: a batch norm without parameters.

    A dimension that does not vary becomes 0. Raises ``ValueError`` for a batch of one.
    """
    return F.batch_norm(at_least_float32(rows), None, None, training=True)


class RegressionBN(Method):
    """Mean squared error of a linear head on the student's embedding to the teacher's, both standardised.

    The batch norm has no parameters and uses the statistics of the global batch only (CompRess, section 4.2).
    With it only the relations of a dimension's values count, not where they lie; the head needs no bias.
    """

    name: ClassVar[str] = "reg_bn"
    paper: ClassVar[str] = "Koohpayegani et al., NeurIPS 2020, https://arxiv.org/abs/2010.14713, section 4.2"
    equation: ClassVar[str] = "mean (BN(W s) - BN(t))^2"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [0.3, 3.0]}}
    search_source: ClassVar[str] = "Around the default."

    def needs(self) -> Needs:
        """Embeddings on both sides."""
        return Needs.of_both_sides("embedding")

    def check(self, setting: Setting) -> None:
        """A batch of one has no variance."""
        if setting.batch_size < 2:
            raise ConfigError(f"methods.{self.name}: batch statistics need train.batch_size of 2 or more")

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The head, trained."""
        from raydistill.methods.state import seeded

        student, teacher = setting.student["embedding"][0], setting.teacher["embedding"][0]
        with seeded(setting.seed):
            return nn.ModuleDict({"head": nn.Linear(student, teacher, bias=False)})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the global batch."""
        predicted = gather_with_grad(parts["head"](step.student[0]["embedding"]))
        with no_autocast(predicted):
            teacher = gather_rows(step.teacher[0]["embedding"])
            return Loss(F.mse_loss(standardise_dimensions(predicted), standardise_dimensions(teacher)))
