"""FSP: the student's flow from stage to stage becomes the teacher's, before distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, SearchSpace, Setting, Stage, Step, Weight
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.pretraining import Pretraining
from raydistill.methods.stages import SeveralStages, StageNumber


def fsp_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    variant: Literal["paper", "code"] = "code",
) -> Tensor:
    """Squared difference of flow matrices, mean over the batch, summed over pairs of consecutive stages.

    Yim et al., CVPR 2017. ``code``: mean over a matrix's entries, and of maps of unequal size the larger is
    average-pooled, the public benchmark's form. ``paper``: Eq. 2 with lambda_i = 1, the sum over the entries, and
    the larger is max-pooled.

    Args:
        student_features: maps [B, C_i, H_i, W_i] of at least two stages, from input to output.
        teacher_features: as many maps [B, C_i, H'_i, W'_i], of the same numbers of channels.
        variant: how it is pooled and averaged.

    Returns:
        A scalar.
    """
    with no_autocast(student_features[0]):
        pool = F.adaptive_avg_pool2d if variant == "code" else F.adaptive_max_pool2d
        flows = zip(flow_matrices(student_features, pool), flow_matrices(teacher_features, pool), strict=True)
        squares = [(student - teacher).square() for student, teacher in flows]
        if variant == "code":
            return torch.stack([square.mean() for square in squares]).sum()
        return torch.stack([square.sum(dim=(1, 2)).mean() for square in squares]).sum()


def flow_matrices(features: Sequence[Tensor], pool: Callable[[Tensor, tuple[int, int]], Tensor]) -> list[Tensor]:
    """Mean over the places of F_i F_{i+1}^T for consecutive maps [B, C_i, H_i, W_i] -> [B, C_i, C_{i+1}] each."""
    flows = []
    for first, second in pairwise([at_least_float32(maps) for maps in features]):
        size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
        left, right = (maps if maps.shape[2:] == size else pool(maps, size) for maps in (first, second))
        flows.append(left.flatten(2) @ right.flatten(2).transpose(1, 2) / (size[0] * size[1]))
    return flows


class FSP(SeveralStages, Pretraining, Method):
    """Flow of solution procedure: which channels of one stage go together with which of the next.

    A stage of ``pretrain_epochs`` before distillation trains the student's features with it; afterwards the weight
    is 0, so the experiment's other methods, cross-entropy at least, go on alone. Student and teacher need equally
    many channels at each stage.

    ``variant: code`` is the public benchmark's loss. It is the default since ``pretrain_lr``, the experiment's, suits
    it: ``paper`` sums over a matrix's entries instead of averaging, so that its gradients are C_i C_{i+1} times
    larger, and max-pools instead of averaging; give it a ``pretrain_lr`` as much smaller.
    """

    name: ClassVar[str] = "fsp"
    paper: ClassVar[str] = "Yim et al., CVPR 2017"
    equation: ClassVar[str] = "sum_i mean (G_i(teacher) - G_i(student))^2, G_i = F_i F_{i+1}^T / (H W)"
    search_space: ClassVar[SearchSpace] = {"pretrain_lr": {"loguniform": [0.015, 0.15]}}
    search_source: ClassVar[str] = "Around the learning rate of the papers' students."

    weight: Weight = 0.0
    stages: Annotated[tuple[StageNumber, ...], Field(min_length=2)] = (0, 1, 2, 3)
    variant: Literal["paper", "code"] = "code"

    def check(self, setting: Setting) -> None:
        """Both networks must have these stages, with as many channels."""
        super().check(setting)
        shapes = zip(self.student_shapes(setting), self.teacher_shapes(setting), strict=True)
        for name, (student, teacher) in zip(self.student_names(), shapes, strict=True):
            if student[0] != teacher[0]:
                raise ConfigError(
                    f"methods.{self.name}.stages: the student's '{name}' has {student[0]} channels, the teacher's map "
                    f"{teacher[0]}; flow matrices need equally many. Choose other stages or networks as wide"
                )

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum over pairs of consecutive stages."""
        return Loss(fsp_loss(self.student_maps(step), self.teacher_maps(step), variant=self.variant))

    def pretraining(self, parts: Any, student: nn.Module) -> Stage:
        """Train the student's features; its classifier gets no gradient."""
        return Stage(
            epochs=self.pretrain_epochs,
            trains=(student,),
            loss=lambda step: self.loss(step, parts),
            needs=self.needs(),
            lr=self.pretrain_lr,
        )
