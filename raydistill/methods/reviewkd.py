"""ReviewKD: the student's shallow stages are reviewed together with its deep ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Step
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.schedules import grown
from raydistill.methods.stages import SeveralStages

_PYRAMID = (4, 2, 1)
MapKind = Literal["features", "preact"]


def hcl_loss(student_features: Sequence[Tensor], teacher_features: Sequence[Tensor]) -> Tensor:
    """Hierarchical context loss: squared error of maps and of their averages over coarse grids, sum over levels.

    Of each pair sum_l w_l mean (s_l - t_l)^2 / sum_l w_l: l runs over the map itself with w = 1 and those of the
    grids 4 x 4, 2 x 2, 1 x 1 that are smaller than it, with w = 1/2, 1/4, 1/8 in this order. Chen et al. 2021,
    https://arxiv.org/abs/2104.09044, section 3.3; the weights are the public code's.

    Args:
        student_features: maps [B, C_i, H_i, W_i].
        teacher_features: as many, of the same shapes.

    Returns:
        A scalar.
    """
    levels = []
    for student, teacher in zip(student_features, teacher_features, strict=True):
        with no_autocast(student):
            levels.append(_pyramid_error(at_least_float32(student), at_least_float32(teacher)))
    return torch.stack(levels).sum()


def _pyramid_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of the squared errors of [B, C, H, W] and of its averages."""
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for size in _PYRAMID:
        if size < student.shape[2]:
            weight /= 2
            weights += weight
            error = F.mse_loss(F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size))
            total = total + weight * error
    return total / weights


class ReviewKD(SeveralStages, Method):
    """Knowledge review: from deep to shallow, each stage of the student is fused with all deeper ones.

    The deepest level is the embedding, as a map of 1 x 1. At each level a gate for each place weighs the stage's
    own map against what the deeper levels passed on; the result, brought to the teacher's shape by a 3 x 3
    convolution, is compared with the teacher's map by ``hcl_loss``. The levels exchange maps of the student's
    embedding width, ``max_width`` at most.

    The weight grows linearly over the first ``warmup_epochs`` epochs, in the first of them 1 / ``warmup_epochs``.
    As in the public code the teacher's maps are those before the activation (``teacher_output``; networks of other
    libraries have only ``features``). The public code chooses a weight for each pair of networks, so ``weight`` is
    worth a search. Batch-norms use batch statistics only, as these modules are never used outside training.
    """

    name: ClassVar[str] = "reviewkd"
    paper: ClassVar[str] = "Chen et al., CVPR 2021, https://arxiv.org/abs/2104.09044"
    equation: ClassVar[str] = "min(epoch / warmup, 1) sum_i HCL(f_i, t_i), f_i from the student's stages i, i+1, ..."
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [0.3, 3.0]}}
    search_source: ClassVar[str] = "Around the default."

    warmup_epochs: Annotated[int, Field(ge=0)] = 20
    max_width: Annotated[int, Field(ge=1)] = 512
    student_output: MapKind = "features"
    teacher_output: MapKind = "preact"

    def student_names(self) -> list[str]:
        """Names of the student's maps, shallow to deep in the papers' settings."""
        return [f"{self.student_output}/{stage}" for stage, _ in self.stage_pairs()]

    def teacher_names(self) -> list[str]:
        """Names of the teacher's maps, in the same order."""
        return [f"{self.teacher_output}/{stage}" for _, stage in self.stage_pairs()]

    def needs(self) -> Needs:
        """Maps and embeddings on both sides."""
        return super().needs() | Needs.of_both_sides("embedding")

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The fusion of each level, the deepest last."""
        from raydistill.methods.adapters import AttentionFusion
        from raydistill.methods.state import seeded, without_running_statistics

        inputs = [*(shape[0] for shape in self.student_shapes(setting)), setting.student["embedding"][0]]
        outputs = [*(shape[0] for shape in self.teacher_shapes(setting)), setting.teacher["embedding"][0]]
        width = min(self.max_width, inputs[-1])
        with seeded(setting.seed):
            levels = nn.ModuleList(
                AttentionFusion(own, width, target, deepest=number == len(self.stages))
                for number, (own, target) in enumerate(zip(inputs, outputs, strict=True))
            )
        without_running_statistics(levels)
        return nn.ModuleDict({"levels": levels})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum over the levels, mean over the batch."""
        students = [*self.student_maps(step), step.student[0]["embedding"][:, :, None, None]]
        teachers = [*self.teacher_maps(step), step.teacher[0]["embedding"][:, :, None, None]]
        reviewed: list[Tensor] = []
        deeper: Tensor | None = None
        for level, student, teacher in reversed(list(zip(parts["levels"], students, teachers, strict=True))):
            fused, deeper = level(student, deeper, teacher.shape[2:])
            reviewed.insert(0, fused)
        error = hcl_loss(reviewed, teachers)
        return Loss(error * grown(step.epoch, self.warmup_epochs), terms={"review": error})
