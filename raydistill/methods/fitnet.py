"""FitNet: a map inside the student predicts a map inside the teacher."""

from __future__ import annotations

from typing import Any, ClassVar

from raydistill.errors import ConfigError
from raydistill.lazy import F, Tensor, nn
from raydistill.methods.base import Loss, Method, SearchSpace, Setting, Step, Weight
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.stages import OneStage, StageNumber


def hint_loss(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """Mean of (r(s) - t)^2 over batch, channels and places; r(s) is the student's map behind a regressor.

    Romero et al. 2015, https://arxiv.org/abs/1412.6550, Eq. 3, there a sum over channels and places with factor 1/2.

    Args:
        student_feature: [B, C, H, W], already of the teacher's shape.
        teacher_feature: [B, C, H, W].

    Returns:
        A scalar.
    """
    with no_autocast(student_feature):
        return F.mse_loss(at_least_float32(student_feature), at_least_float32(teacher_feature))


class FitNet(OneStage, Method):
    """Hints: a regressor on the student's map at ``stage`` follows the teacher's map.

    The hint is learned together with the other losses, and the regressor is convolution, batch-norm and ReLU
    with a kernel chosen from the two sizes: so does the public benchmark, to which ``weight`` belongs. The paper
    trains the student up to the hint first and on logits afterwards, with a convolution and no batch-norm.

    The regressor's batch-norm uses batch statistics only, as the regressor is never used outside training.
    """

    name: ClassVar[str] = "fitnet"
    paper: ClassVar[str] = "Romero et al., ICLR 2015, https://arxiv.org/abs/1412.6550"
    equation: ClassVar[str] = "mean (r(s) - t)^2, r = ReLU(BatchNorm(convolution))"
    search_space: ClassVar[SearchSpace] = {"weight": {"loguniform": [30.0, 300.0]}}
    search_source: ClassVar[str] = "Around the weight of CRD's tables."

    weight: Weight = 100.0
    stage: StageNumber = 2

    def check(self, setting: Setting) -> None:
        """There must be a convolution from one map to the other."""
        from raydistill.methods.adapters import can_regress

        (student,), (teacher,) = self.student_shapes(setting), self.teacher_shapes(setting)
        if not can_regress(student, teacher):
            sizes = f"{student[1]}x{student[2]} to the teacher's {teacher[1]}x{teacher[2]}"
            raise ConfigError(
                f"methods.{self.name}.stage: no convolution leads from the student's {sizes}; choose stages where the"
                " student's map is half as large, equally large or larger"
            )

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """The regressor."""
        from raydistill.methods.adapters import HintRegressor
        from raydistill.methods.state import seeded, without_running_statistics

        (student,), (teacher,) = self.student_shapes(setting), self.teacher_shapes(setting)
        with seeded(setting.seed):
            regressor = HintRegressor(student, teacher)
        without_running_statistics(regressor)
        return nn.ModuleDict({"regressor": regressor})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Mean over the batch."""
        (student,), (teacher,) = self.student_maps(step), self.teacher_maps(step)
        return Loss(hint_loss(parts["regressor"](student), teacher))
