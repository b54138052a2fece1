"""VID: the student's maps leave little uncertainty about the teacher's."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field

from raydistill.lazy import F, Tensor, nn, torch
from raydistill.methods.base import Loss, Method, SearchSpace, Setting, Step
from raydistill.methods.maps import same_size
from raydistill.methods.precision import at_least_float32, no_autocast
from raydistill.methods.stages import SeveralStages

_LEAST_VARIANCE = 1e-5


def vid_loss(predicted_mean: Tensor, teacher_feature: Tensor, log_scale: Tensor) -> Tensor:
    """Mean of ((t - mu)^2 / v + log v) / 2 with v = softplus(log_scale) + 1e-5, a variance for each channel.

    The negative log-likelihood of the teacher's map, without its constant; Ahn et al. 2019,
    https://arxiv.org/abs/1904.05835, Eq. 6, there a sum over channels and places.

    Args:
        predicted_mean: mu, [B, C, H, W]; of maps of unequal size the larger is average-pooled.
        teacher_feature: t, [B, C, H', W'].
        log_scale: [C].

    Returns:
        A scalar.
    """
    with no_autocast(predicted_mean):
        mean, target = same_size(at_least_float32(predicted_mean), at_least_float32(teacher_feature))
        variance = (F.softplus(at_least_float32(log_scale)) + _LEAST_VARIANCE)[:, None, None]
        return 0.5 * ((mean - target).square() / variance + variance.log()).mean()


class VID(SeveralStages, Method):
    """Variational information distillation: a Gaussian around what a regressor makes of the student's map.

    At each stage the mean comes from three 1 x 1 convolutions with ReLU between them and the variance is one
    trained number for each channel, ``initial_variance`` at first. The loss is the mean over channels and places
    where the paper has the sum, as in the public code, to which ``weight`` belongs. Where the student's map is
    the larger one it is average-pooled before the regressor.
    """

    name: ClassVar[str] = "vid"
    paper: ClassVar[str] = "Ahn et al., CVPR 2019, https://arxiv.org/abs/1904.05835"
    equation: ClassVar[str] = "sum_i mean 0.5 ((t - mu(s))^2 / v + log v), v = softplus(a_c) + 1e-5"
    search_space: ClassVar[SearchSpace] = {
        "weight": {"loguniform": [0.3, 3.0]},
        "initial_variance": {"loguniform": [1.5, 15.0]},
    }
    search_source: ClassVar[str] = "Around the weight of CRD's tables and the default variance."

    initial_variance: Annotated[float, Field(gt=_LEAST_VARIANCE)] = 5.0

    def parts(self, setting: Setting) -> nn.ModuleDict:
        """A regressor and the scales of the channels for each stage."""
        from raydistill.methods.adapters import mean_regressor
        from raydistill.methods.state import seeded

        shapes = list(zip(self.student_shapes(setting), self.teacher_shapes(setting), strict=True))
        # The inverse of softplus, log(e^x - 1), which large x can't overflow in this form.
        softened = self.initial_variance - _LEAST_VARIANCE
        start = softened + math.log(-math.expm1(-softened))
        with seeded(setting.seed):
            regressors = nn.ModuleList(mean_regressor(student[0], teacher[0]) for student, teacher in shapes)
        scales = nn.ParameterList(torch.full((teacher[0],), start) for _, teacher in shapes)
        return nn.ModuleDict({"regressors": regressors, "log_scales": scales})

    def loss(self, step: Step, parts: Any) -> Loss:
        """Sum over the stages, mean over the batch."""
        maps = zip(self.student_maps(step), self.teacher_maps(step), strict=True)
        levels = []
        for regressor, log_scale, pair in zip(parts["regressors"], parts["log_scales"], maps, strict=True):
            student, teacher = same_size(*pair)
            levels.append(vid_loss(regressor(student), teacher, log_scale))
        return Loss(torch.stack(levels).sum())
