"""DML: networks that learn at the same time, each from the probabilities of the others."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.lazy import torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step
from raydistill.methods.kd import kd_loss
from raydistill.methods.logits import check_equal_classes, logits_of_student, logits_of_teachers


class DML(Method):
    """Deep mutual learning: KL(p_peer || p_student) at temperature 1, mean over the peers, which come as teachers.

    Cross-entropy, which the paper adds with weight 1, is a method of its own.
    """

    name: ClassVar[str] = "dml"
    paper: ClassVar[str] = "Zhang et al., CVPR 2018, https://arxiv.org/abs/1706.00384"
    equation: ClassVar[str] = "mean over peers of KL(softmax(z_peer) || softmax(z_s))"
    joins_teachers: ClassVar[bool] = True
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [0.3, 3.0]}}
    search_source: ClassVar[str] = "Around the published value."

    standardise: bool = False

    def needs(self) -> Needs:
        """Logits on both sides."""
        return Needs.of_both_sides("logits")

    def check(self, setting: Setting) -> None:
        """All networks must have the same classes."""
        check_equal_classes(self.name, setting)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch and the peers."""
        student = logits_of_student(step, standardise=self.standardise)
        peers = logits_of_teachers(step, standardise=self.standardise)
        return Loss(torch.stack([kd_loss(student, peer, temperature=1.0) for peer in peers]).mean())
