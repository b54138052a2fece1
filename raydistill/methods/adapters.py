"""Trained modules that lead from a student's map to the shape of a teacher's.

Where a method's loss runs these, its ``parts`` takes the running statistics from their batch-norms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.methods.stages import MapShape


def can_regress(student: MapShape, teacher: MapShape) -> bool:
    """Whether ``HintRegressor`` has a convolution from maps of one shape (C, H, W) to maps of the other."""
    return _halves(teacher, student) or (student[1] >= teacher[1] and student[2] >= teacher[2])


class HintRegressor(nn.Module):
    """FitNet's regressor: convolution, batch-norm, ReLU.

    The convolution follows from the sizes: stride 2 with kernel 3 where the student's map is twice as large,
    transposed with kernel 4 where it is half as large, else the kernel that leaves just the teacher's size.
    """

    def __init__(self, student: MapShape, teacher: MapShape) -> None:
        """Take shapes (C, H, W) for which ``can_regress`` holds."""
        super().__init__()
        channels = student[0], teacher[0]
        # No bias: the batch-norm behind would take it away again.
        if _halves(student, teacher):
            self.conv: nn.Module = nn.Conv2d(*channels, 3, stride=2, padding=1, bias=False)
        elif _halves(teacher, student):
            self.conv = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1, bias=False)
        else:
            kernel = (1 + student[1] - teacher[1], 1 + student[2] - teacher[2])
            self.conv = nn.Conv2d(*channels, kernel, bias=False)
        self.norm = nn.BatchNorm2d(teacher[0])

    def forward(self, maps: Tensor) -> Tensor:
        """Map the student's [B, C, H, W] to the teacher's [B, C', H', W']."""
        return F.relu(self.norm(self.conv(maps)))


class AttentionFusion(nn.Module):
    """ReviewKD's step from a deeper stage to this one: the student's map and what came from below, gated by place.

    ``deepest`` has nothing below it and no gates.
    """

    def __init__(self, inputs: int, width: int, outputs: int, *, deepest: bool) -> None:
        """Take the channels of the student's map, of what is passed on, and of the teacher's map."""
        super().__init__()
        self.reduce = _convolution_and_norm(inputs, width, 1)
        self.gates = None if deepest else nn.Conv2d(2 * width, 2, 1)
        self.expand = _convolution_and_norm(width, outputs, 3)

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Fuse one stage.

        Args:
            maps: the student's, [B, C, H, W].
            deeper: what the next deeper stage passed on, [B, width, h, w]; None for the deepest stage.
            size: (H', W') of the teacher's map.

        Returns:
            The map to compare with the teacher's [B, C', H', W'], and what to pass on [B, width, H', W'].
        """
        fused = self.reduce(maps)
        if self.gates is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, size=fused.shape[2:], mode="nearest")
            gates = torch.sigmoid(self.gates(torch.cat([fused, deeper], dim=1)))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size=size, mode="nearest")
        return self.expand(fused), fused


def mean_regressor(inputs: int, outputs: int) -> nn.Sequential:
    """VID's regressor of the mean: three 1 x 1 convolutions with ReLU between them."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 1, bias=False),
    )


def _convolution_and_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _halves(large: MapShape, small: MapShape) -> bool:
    return large[1:] == (2 * small[1], 2 * small[2])
