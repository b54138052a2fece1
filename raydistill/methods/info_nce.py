"""InfoNCE in place of CRD's objective, on the same banks and negatives."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.lazy import Tensor
from raydistill.methods.banks import BANK_SPACE, BankContrast
from raydistill.methods.base import Loss, Method, SearchSpace, Step, Weight
from raydistill.methods.precision import no_autocast


class InfoNCE(BankContrast, Method):
    """A softmax picks an image's own embedding of the other side out of drawn negatives, both ways.

    The alternative objective of CRD's Table 6: banks, heads, draws (``exclude``, ``negatives``), ``temperature``
    and ``weight`` are CRD's. A step's samples must be all different.
    """

    name: ClassVar[str] = "info_nce"
    paper: ClassVar[str] = "Tian et al., ICLR 2020, https://arxiv.org/abs/1910.10699, Table 6; van den Oord et al. 2018"
    equation: ClassVar[str] = "-log softmax_0(s_i.(t_i, t_j, ...) / T) + the same with s, t swapped"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"uniform": [0.5, 1.5]},
        **BANK_SPACE,
    }
    search_source: ClassVar[str] = "CRD's Figure 5, as banks and draws are CRD's; section 6.4 for the weight."

    weight: Weight = 0.8

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum of both directions; carries the embeddings for the banks."""
        compared = self.compare(step, parts)
        student, teacher = self._pick(compared.student), self._pick(compared.teacher)
        return Loss(student + teacher, terms={"student": student, "teacher": teacher}, carry=compared.carry)

    def _pick(self, similarity: Tensor) -> Tensor:
        """-log softmax of column 0, mean over the batch: [B, K + 1] -> a scalar."""
        with no_autocast(similarity):
            scores = similarity / self.temperature
            return (scores.logsumexp(dim=1) - scores[:, 0]).mean()
