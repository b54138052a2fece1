"""WCoRD: both forms of the Wasserstein distance, GCKT over the training set and LCKT within the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from raydistill.lazy import nn
from raydistill.methods.banks import BANK_SPACE, BankContrast
from raydistill.methods.base import Loss, Method, SearchSpace, Setting, Step, Weight
from raydistill.methods.gckt import GCKT
from raydistill.methods.lckt import LCKT, Epsilon, Iterations


class WCoRD(BankContrast, Method):
    """Wasserstein contrastive representation distillation: the weighted sum of the methods gckt and lckt.

    Each has heads of its own. ``global_weight`` and ``local_weight`` are the weights that the two have alone; what
    was chosen here, as no code of the authors is public, is said there.
    """

    name: ClassVar[str] = "wcord"
    paper: ClassVar[str] = "Chen et al., CVPR 2021, https://arxiv.org/abs/2012.08674"
    equation: ClassVar[str] = "w_g GCKT(s, t; banks) + w_l LCKT(s, t)"
    search_space: ClassVar[SearchSpace] = {
        "global_weight": {"loguniform": [0.25, 2.5]},
        "local_weight": {"loguniform": [0.015, 0.15]},
        "epsilon": {"loguniform": [0.015, 0.15]},
        **BANK_SPACE,
    }
    search_source: ClassVar[str] = "CRD's Figure 5, as the banks are CRD's; around the default weights."

    global_weight: Weight = 0.8
    local_weight: Weight = 0.05
    epsilon: Epsilon = 0.05
    iterations: Iterations = 50

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The parts of both methods."""
        return nn.ModuleDict({"global": self._global.parts(setting), "local": self._local.parts(setting)})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Weighted sum; carries what the global part carries."""
        contrast, transport = self._global.loss(step, parts["global"]), self._local.loss(step, parts["local"])
        return Loss(
            self.global_weight * contrast.total + self.local_weight * transport.total,
            terms={"global": contrast.total, "local": transport.total},
            carry=contrast.carry,
        )

    def after_step(self, parts: Any, student: nn.Module, carry: Mapping[str, Any]) -> None:
        """Move the banks; keep Z from the first batch on."""
        self._global.after_step(parts["global"], student, carry)

    @property
    def _global(self) -> GCKT:
        return GCKT(**{field: getattr(self, field) for field in BankContrast.model_fields})

    @property
    def _local(self) -> LCKT:
        return LCKT(epsilon=self.epsilon, iterations=self.iterations)
