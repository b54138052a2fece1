"""A student that learns from the average of its own past: what DINO and methods built on it share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from raydistill.lazy import Tensor, nn, torch
from raydistill.methods.base import Momentum, Needs, Setting, Step
from raydistill.methods.collectives import mean_over_rows
from raydistill.methods.crops import GLOBAL_CROPS, MultiCrop
from raydistill.methods.schedules import cosine

Width = Annotated[int, Field(ge=1)]


def move_center(center: Any, mean: Tensor, momentum: float) -> None:
    """Move a remembered centre towards the mean of the global batch, of which this rank has ``mean`` [K]."""
    center.set(torch.lerp(mean_over_rows(mean).to(center.value), center.value, momentum))


class SelfDistillation(MultiCrop):
    """Hyper-parameters of head, prototypes and averaged teacher; the parts and outputs that follow from them."""

    prototypes: Annotated[int, Field(ge=2)] = 65536
    hidden: Width = 2048
    bottleneck: Width = 256
    layers: Width = 3
    batch_norm: bool = False
    norm_last_layer: bool = True
    freeze_last_layer: Annotated[int, Field(ge=0)] = 1
    momentum: Momentum = 0.996

    def self_needs(self) -> Needs:
        """The student's embedding of all crops, the images of the large ones for the teacher."""
        return Needs(
            student={view: frozenset({"embedding"}) for view in range(self.crops)},
            images=frozenset(range(GLOBAL_CROPS)),
            draws=self.global_draws() | self.local_draws(),
        )

    def self_parts(self, setting: Setting) -> dict[str, nn.Module]:
        """The student's head, which is trained, and the averaged teacher."""
        from raydistill.methods.averaged import AveragedEncoder
        from raydistill.methods.heads import PrototypeHead
        from raydistill.methods.state import seeded

        with seeded(setting.seed):
            head = PrototypeHead(
                setting.student["embedding"][0],
                self.prototypes,
                hidden=self.hidden,
                bottleneck=self.bottleneck,
                layers=self.layers,
                batch_norm=self.batch_norm,
                norm_last_layer=self.norm_last_layer,
            )
        return {"head": head, "teacher": AveragedEncoder(setting.student_network, head)}

    def student_scores(self, step: Step, parts: Any) -> Tensor:
        """Scores of all crops [crops * B, K], crop by crop."""
        rows = torch.cat([step.student[view]["embedding"] for view in range(self.crops)])
        scores: Tensor = parts["head"](rows, train_last_layer=step.epoch >= self.freeze_last_layer)
        return scores

    def teacher_scores(self, step: Step, parts: Any) -> Tensor:
        """The teacher's scores of the large crops [2 * B, K], crop by crop, without a gradient."""
        scores: Tensor = parts["teacher"]([step.views[view] for view in range(GLOBAL_CROPS)])
        return scores

    def momentum_at(self, progress: float) -> float:
        """The teacher's momentum, which rises to 1 along a cosine over the run."""
        return cosine(self.momentum, 1.0, progress)
