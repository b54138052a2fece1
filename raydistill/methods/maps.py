"""Feature maps of unlike networks, made comparable."""

from __future__ import annotations

from raydistill.lazy import F, Tensor


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps [B, C, H, W] and [B, C', H', W'] to the height and width of the smaller."""
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return pooled(student, height, width), pooled(teacher, height, width)


def pooled(maps: Tensor, height: int, width: int) -> Tensor:
    """Average maps [B, C, H, W] over cells of a grid of ``height`` x ``width``."""
    if maps.shape[2:] == (height, width):
        return maps
    return F.adaptive_avg_pool2d(maps, (height, width))
