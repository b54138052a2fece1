"""AB: the student's neurons become active where the teacher's are, before distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, SearchSpace, Setting, Stage, Step, Weight
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.pretraining import Pretraining
from raydistill.methods.stages import MapShape, SeveralStages

_SCALE = 3 / 1000


def ab_loss(student_preacts: Sequence[Tensor], teacher_preacts: Sequence[Tensor], *, margin: float = 1.0) -> Tensor:
    """3/1000 sum_i 2^(i - n + 1) sum max(0, m - sign(t) s)^2 over levels i < n and all neurons, mean over the batch.

    Heo et al. 2019, https://arxiv.org/abs/1811.03233: a squared hinge that pushes a neuron's response
    beyond the margin on the side of zero where the teacher's is. The factors are the authors'.

    Args:
        student_preacts: maps [B, C_i, H_i, W_i] before the activation.
        teacher_preacts: maps of the same shapes.
        margin: m.

    Returns:
        A scalar.
    """
    levels = []
    for level, (student, teacher) in enumerate(zip(student_preacts, teacher_preacts, strict=True), 1):
        with no_autocast(student):
            response = at_least_float32(student)
            beyond = F.relu(margin - torch.where(teacher > 0, response, -response))
            levels.append(2.0 ** (level - len(teacher_preacts)) * beyond.square().sum() / len(response))
    return _SCALE * torch.stack(levels).sum()


def connector(student: MapShape, teacher: MapShape) -> nn.Sequential:
    """Convolution and batch-norm from maps of one shape (C, H, W) to the other; nothing where they are equal.

    The kernel is the one that ``HintRegressor`` chooses: 1 x 1 for equal sizes, as in the authors' code.
    """
    from raydistill.methods.adapters import HintRegressor

    if student == teacher:
        return nn.Sequential()
    regressor = HintRegressor(student, teacher)
    return nn.Sequential(regressor.conv, regressor.norm)


class AB(SeveralStages, Pretraining, Method):
    """Activation boundaries: which neurons respond at all, not how strongly, on maps before their activation.

    A stage of ``pretrain_epochs`` before distillation trains the student's features with it, through a connector
    (convolution and batch-norm) wherever the maps of a stage have different shapes; afterwards the weight is 0, so
    the experiment's other methods, cross-entropy at least, go on alone, as in the public benchmark. The authors go on
    with distillation of logits, which is the method kd.

    The connectors' batch-norms use batch statistics only: they are never used outside training, and so the loss
    changes no state.
    """

    name: ClassVar[str] = "ab"
    paper: ClassVar[str] = "Heo et al., AAAI 2019, https://arxiv.org/abs/1811.03233"
    equation: ClassVar[str] = "3/1000 sum_i 2^(i - n + 1) |max(0, m - sign(t_i) r_i(s_i))|^2"
    output: ClassVar[Literal["features", "preact"]] = "preact"
    search_space: ClassVar[SearchSpace] = {
        "margin": {"loguniform": [0.3, 3.0]},
        "pretrain_lr": {"loguniform": [0.015, 0.15]},
    }
    search_source: ClassVar[str] = "Around the published margin, and the learning rate of the papers' students."

    weight: Weight = 0.0
    margin: Annotated[float, Field(gt=0.0)] = 1.0

    def check(self, setting: Setting) -> None:
        """Both networks must have these stages, and there must be a convolution from each map to the teacher's."""
        from raydistill.methods.adapters import can_regress

        super().check(setting)
        shapes = zip(self.student_shapes(setting), self.teacher_shapes(setting), strict=True)
        for name, (student, teacher) in zip(self.student_names(), shapes, strict=True):
            if not can_regress(student, teacher):
                sizes = f"{student[1]}x{student[2]} to the teacher's {teacher[1]}x{teacher[2]}"
                raise ConfigError(
                    f"methods.{self.name}.stages: no convolution leads from the student's '{name}' of {sizes}; choose"
                    " stages where the student's map is half as large, equally large or larger"
                )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """A connector for each stage."""
        from raydistill.methods.state import seeded, without_running_statistics

        shapes = zip(self.student_shapes(setting), self.teacher_shapes(setting), strict=True)
        with seeded(setting.seed):
            connectors = nn.ModuleList(connector(student, teacher) for student, teacher in shapes)
        without_running_statistics(connectors)
        return nn.ModuleDict({"connectors": connectors})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum over the stages."""
        pairs = zip(parts["connectors"], self.student_maps(step), strict=True)
        connected = [connect(maps) for connect, maps in pairs]
        return Loss(ab_loss(connected, self.teacher_maps(step), margin=self.margin))

    def pretraining(self, parts: Any, student: nn.Module) -> Stage:
        """Train the student's features and the connectors; the student's classifier gets no gradient."""
        return Stage(
            epochs=self.pretrain_epochs,
            trains=(parts["connectors"], student),
            loss=lambda step: self.loss(step, parts),
            needs=self.needs(),
            lr=self.pretrain_lr,
        )
