"""Multi-crop: two large crops and several small ones of each image, and losses between different crops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from raydistill.lazy import F, Tensor, torch
from raydistill.methods.base import Draw

GLOBAL_CROPS = 2


def _share_range(value: tuple[float, float]) -> tuple[float, float]:
    if not 0.0 < value[0] <= value[1] <= 1.0:
        raise ValueError("must be two shares of the image's area with 0 < low <= high <= 1")
    return value


AreaRange = Annotated[tuple[float, float], AfterValidator(_share_range)]


class MultiCrop(BaseModel):
    """Hyper-parameters of multi-crop: views 0 and 1 are the large crops, the others the small ones.

    ``global_scale`` and ``local_scale``: share of the image's area that a crop takes; ``local_size``: side of
    the small crops relative to the image's.
    """

    local_crops: Annotated[int, Field(ge=0)] = 6
    global_scale: AreaRange = (0.4, 1.0)
    local_scale: AreaRange = (0.05, 0.4)
    local_size: Annotated[float, Field(gt=0.0, le=1.0)] = 96 / 224

    @property
    def crops(self) -> int:
        """Number of all crops of an image."""
        return GLOBAL_CROPS + self.local_crops

    def global_draws(self) -> dict[int, Draw]:
        """How the large crops are drawn."""
        return dict.fromkeys(range(GLOBAL_CROPS), Draw(scale=self.global_scale))

    def local_draws(self, first: int = GLOBAL_CROPS) -> dict[int, Draw]:
        """How the small crops are drawn, as views ``first``, ``first`` + 1 and so on."""
        drawn = Draw(scale=self.local_scale, size=self.local_size)
        return dict.fromkeys(range(first, first + self.local_crops), drawn)


def over_other_views(
    loss: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor, *, crops: int
) -> Tensor:
    """Mean of ``loss`` over all pairs of a crop of the student's and another crop of the teacher's.

    Args:
        loss: of logits [B, K] and a target [B, K]. It must be affine in the target, so that one call for each crop
            with the mean of its targets gives what all pairs would.
        student: logits [crops * B, K], crop by crop; the first ones are those that the teacher saw too.
        teacher: targets [views * B, K], view by view; at least two views.
        crops: number of the student's crops.

    Returns:
        A scalar.
    """
    by_crop = student.chunk(crops)
    by_view = teacher.chunk(len(teacher) // len(by_crop[0]))
    weights = [len(by_view) - (crop < len(by_view)) for crop in range(crops)]
    losses = [
        loss(logits, torch.stack([target for view, target in enumerate(by_view) if view != crop]).mean(dim=0))
        for crop, logits in enumerate(by_crop)
    ]
    total = torch.stack([weight * value for weight, value in zip(weights, losses, strict=True)]).sum()
    return total / sum(weights)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_k q_k log softmax(z)_k of ``logits`` z and ``target`` q, both [B, K]; mean over the batch."""
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
