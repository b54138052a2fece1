"""FT: factor transfer, between what a paraphraser makes of the teacher and a translator of the student."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.at import attention
from raydistill.methods.base import Loss, Method, Needs, SearchSpace, Setting, Stage, Step, Weight
from raydistill.methods.maps import same_size
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.pretraining import Pretraining
from raydistill.methods.stages import OneStage, StageNumber

Order = Literal[1, 2]


def ft_loss(
    student_factor: Tensor,
    teacher_factor: Tensor,
    *,
    p: Order = 1,
    variant: Literal["paper", "code"] = "code",
) -> Tensor:
    """Distance of normalised factors, mean over the batch.

    Kim, Park and Kwak 2018, https://arxiv.org/abs/1802.04977. ``paper``: factors as unit vectors of all their C H W
    entries; for p = 1 the mean of absolute differences, as the authors compute it, for p = 2 the Euclidean distance.
    ``code``: the public benchmark first squares a factor and averages it over its channels, as attention
    transfer does, and takes the mean of |difference|^p. Of factors of unequal size the larger is average-pooled.

    Args:
        student_factor: [B, C, H, W].
        teacher_factor: [B, C', H', W']; ``paper`` needs C' = C.
        p: order of the distance.
        variant: what is compared.

    Returns:
        A scalar.
    """
    with no_autocast(student_factor):
        student, teacher = same_size(at_least_float32(student_factor), at_least_float32(teacher_factor))
        if variant == "code":
            return (attention(student) - attention(teacher)).abs().pow(p).mean()
        difference = F.normalize(student.flatten(1), dim=1) - F.normalize(teacher.flatten(1), dim=1)
        return difference.abs().mean() if p == 1 else torch.linalg.vector_norm(difference, dim=1).mean()


class FT(OneStage, Pretraining, Method):
    """Factor transfer on one map of each network, the last one of a network with four stages by default.

    Before distillation a stage of ``pretrain_epochs`` trains a paraphraser to reconstruct the teacher's maps from
    ``rate`` times as many channels. Then it is frozen, and the student learns to give, through a translator that
    learns with it, the same factors. The translator's batch-norms use batch statistics only: it is never used
    outside training, and so the loss changes no state.

    ``variant: paper`` compares whole normalised factors. ``code`` compares their attention maps, as the public
    benchmark does; its script has the weight 200, though its paper reports 500. ``pretrain_lr`` is what the
    benchmark takes for students of the families resnet and wrn; for others it takes the experiment's (``null``).
    """

    name: ClassVar[str] = "ft"
    paper: ClassVar[str] = "Kim, Park and Kwak, NeurIPS 2018, https://arxiv.org/abs/1802.04977"
    equation: ClassVar[str] = "| F_t / |F_t|_2 - F_s / |F_s|_2 |_p"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [150.0, 1500.0]},
        "rate": {"choice": [0.25, 0.5, 0.75]},
    }
    search_source: ClassVar[str] = "Around the weight of CRD's tables and the published rate."

    weight: Weight = 500.0
    stage: StageNumber = 3
    rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    p: Order = 1
    variant: Literal["paper", "code"] = "paper"
    pretrain_lr: Annotated[float, Field(gt=0.0)] | None = 0.01

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The paraphraser, frozen but for its stage, and the translator."""
        from raydistill.methods.factors import paraphraser, translator
        from raydistill.methods.state import seeded, without_running_statistics

        (student,), (teacher,) = self.student_shapes(setting), self.teacher_shapes(setting)
        factors = max(1, int(teacher[0] * self.rate))
        with seeded(setting.seed):
            parts = {
                "paraphraser": paraphraser(teacher[0], factors).requires_grad_(False),
                "translator": translator(student[0], factors),
            }
        without_running_statistics(parts["translator"])
        return nn.ModuleDict(parts)

    def loss(self, step: Step, parts: Any) -> Loss:
        """Distance of the translator's factors from the paraphraser's."""
        (student,), (teacher,) = self.student_maps(step), self.teacher_maps(step)
        with torch.no_grad():
            wanted = parts["paraphraser"]["encoder"](teacher)
        return Loss(ft_loss(parts["translator"](student), wanted, p=self.p, variant=self.variant))

    def pretraining(self, parts: Any, student: nn.Module) -> Stage | None:
        """Train the paraphraser to reconstruct the teacher's maps, where its factors will be used."""
        if not self.weight:
            return None
        paraphraser = parts["paraphraser"]

        def reconstruct(step: Step) -> Loss:
            (maps,) = self.teacher_maps(step)
            found = paraphraser["decoder"](paraphraser["encoder"](maps))
            with no_autocast(found):
                return Loss(F.mse_loss(at_least_float32(found), at_least_float32(maps)))

        return Stage(
            epochs=self.pretrain_epochs,
            trains=(paraphraser,),
            loss=reconstruct,
            needs=Needs(teacher=self.needs().teacher),
            lr=self.pretrain_lr,
        )
