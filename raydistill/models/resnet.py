"""Residual networks for small images (He et al. 2016), two-layer blocks and the CIFAR version of ResNet-50.

Parameter names and their order are those of the public distillation benchmarks, so their checkpoints load
unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.models.taps import Blocks, StagedNetwork, initialise_fan_out


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return the shortcut: a 1x1 convolution where the shape changes, else nothing."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; returns the sum before its activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block; ``stride`` 2 halves the size."""
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _projection(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/stride, W/stride]."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        total: Tensor = self.bn2(self.conv2(hidden)) + self.downsample(maps)
        return total


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; returns the sum before its activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block, a quarter as wide inside; ``stride`` 2 halves the size."""
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = _projection(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/stride, W/stride]."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        total: Tensor = self.bn3(self.conv3(hidden)) + self.shortcut(maps)
        return total


class _ResNet(StagedNetwork):
    """Stem, ``layer1``, ``layer2``, ...: all but the first of them halve the size."""

    def __init__(
        self,
        block: Callable[[int, int, int], nn.Module],
        counts: Sequence[int],
        widths: Sequence[int],
        in_channels: int,
    ) -> None:
        super().__init__()
        self.num_stages = len(widths)
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        for index, (count, inputs, outputs) in enumerate(zip(counts, widths[:-1], widths[1:], strict=True), start=1):
            first = block(inputs, outputs, 1 if index == 1 else 2)
            others = (block(outputs, outputs, 1) for _ in range(count - 1))
            self.add_module(f"layer{index}", Blocks(first, *others))
        self.initialise()

    def initialise(self) -> None:
        """Draw the convolutions; the classifier is PyTorch's."""
        initialise_fan_out(self)

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Run the stem (index 0) or ``layer<index>``."""
        raw: Tensor = self.bn1(self.conv1(maps)) if index == 0 else getattr(self, f"layer{index}")(maps)
        return raw


class CifarResNet(_ResNet):
    """ResNet with two-layer blocks; ``depth`` is 6n + 2."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
    ) -> None:
        """Build the network; ``widths`` are the channels of the stem and the three stages."""
        super().__init__(BasicBlock, [(depth - 2) // 6] * 3, widths, in_channels)
        self.fc = nn.Linear(widths[-1], num_classes)

    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, classes]."""
        logits: Tensor = self.fc(embedding)
        return logits


class CifarResNet50(_ResNet):
    """ResNet-50 with a 3x3 stem and no max-pooling, so that 32x32 images end as 4x4 maps."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        """Build the network with fresh weights."""
        super().__init__(BottleneckBlock, [3, 4, 6, 3], [64, 256, 512, 1024, 2048], in_channels)
        self.linear = nn.Linear(2048, num_classes)

    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, classes]."""
        logits: Tensor = self.linear(embedding)
        return logits
