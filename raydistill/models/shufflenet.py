"""ShuffleNet V1 (Zhang et al. 2018) and V2 (Ma et al. 2018) for small images: 1x1 stem, three halving stages.

Parameter names and their order are those of the public distillation benchmarks, so their checkpoints load
unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.models.taps import Blocks, StagedNetwork, pool

_STEM_WIDTH = 24


def shuffle(maps: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` equal groups; shape [B, C, H, W] stays."""
    batch, channels, height, width = maps.shape
    split = maps.view(batch, groups, channels // groups, height, width)
    return split.transpose(1, 2).reshape(batch, channels, height, width)


def _pointwise(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, groups=groups, bias=False)


def _depthwise(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


class GroupedBlock(nn.Module):
    """V1's block: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    At stride 2 the averaged input is appended, else it is added; returns the maps before their activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int) -> None:
        """Build the block; ``stride`` is 1 or 2."""
        super().__init__()
        self.stride = stride
        # The stem's 24 channels are too few to be grouped.
        self.groups = 1 if inputs == _STEM_WIDTH else groups
        produced = outputs - inputs if stride == 2 else outputs
        inner = produced // 4
        self.conv1 = _pointwise(inputs, inner, self.groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = _depthwise(inner, stride)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = _pointwise(inner, produced, groups)
        self.bn3 = nn.BatchNorm2d(produced)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/stride, W/stride]."""
        hidden = shuffle(F.relu(self.bn1(self.conv1(maps))), self.groups)
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        produced: Tensor = self.bn3(self.conv3(hidden))
        if self.stride == 2:
            return torch.cat([produced, F.avg_pool2d(maps, 3, stride=2, padding=1)], dim=1)
        return produced + maps


class ShuffleNetV1(StagedNetwork):
    """ShuffleNet V1 with three groups."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        groups, inputs = 3, _STEM_WIDTH
        self.conv1 = _pointwise(in_channels, inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        for index, (outputs, count) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
            first = GroupedBlock(inputs, outputs, 2, groups)
            others = (GroupedBlock(outputs, outputs, 1, groups) for _ in range(count - 1))
            self.add_module(f"layer{index}", Blocks(first, *others))
            inputs = outputs
        self.linear = nn.Linear(inputs, num_classes)

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Run the stem (index 0) or ``layer<index>``."""
        raw: Tensor = self.bn1(self.conv1(maps)) if index == 0 else getattr(self, f"layer{index}")(maps)
        return raw

    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, classes]."""
        logits: Tensor = self.linear(embedding)
        return logits


class SplitBlock(nn.Module):
    """V2's block: half of the channels passes, half is filtered; returns both before the activation."""

    def __init__(self, channels: int) -> None:
        """Build the block; ``channels`` is even."""
        super().__init__()
        half = channels // 2
        self.conv1 = _pointwise(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = _depthwise(half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(half, half)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        passed, hidden = maps.chunk(2, dim=1)
        hidden = F.relu(self.bn1(self.conv1(hidden)))
        hidden = self.bn3(self.conv3(self.bn2(self.conv2(hidden))))
        return torch.cat([passed, hidden], dim=1)


class HalvingBlock(nn.Module):
    """V2's stride-2 block: both halves are filtered from the whole input; returned before the activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Build the block; ``outputs`` is even."""
        super().__init__()
        half = outputs // 2
        self.conv1 = _depthwise(inputs, 2)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = _pointwise(inputs, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = _pointwise(inputs, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = _depthwise(half, 2)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = _pointwise(half, half)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/2, W/2]."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(maps))))
        right = F.relu(self.bn3(self.conv3(maps)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return torch.cat([left, right], dim=1)


class ShuffledBlocks(Blocks):
    """Blocks of V2, between which channels are activated and shuffled."""

    def activate(self, raw: Tensor) -> Tensor:
        """Activate and mix the two halves; activating the half that passed, non-negative, changes nothing."""
        return shuffle(F.relu(raw), 2)


class ShuffleNetV2(StagedNetwork):
    """ShuffleNet V2 of width 1; ``preact`` holds the halves unshuffled, following the public benchmark."""

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        """Build the network with fresh weights."""
        super().__init__()
        inputs, embedding_width = _STEM_WIDTH, 1024
        self.conv1 = _pointwise(in_channels, inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        for index, (outputs, count) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
            others = (SplitBlock(outputs) for _ in range(count))
            self.add_module(f"layer{index}", ShuffledBlocks(HalvingBlock(inputs, outputs), *others))
            inputs = outputs
        self.conv2 = _pointwise(inputs, embedding_width)
        self.bn2 = nn.BatchNorm2d(embedding_width)
        self.linear = nn.Linear(embedding_width, num_classes)

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Run the stem (index 0) or ``layer<index>``."""
        raw: Tensor = self.bn1(self.conv1(maps)) if index == 0 else getattr(self, f"layer{index}")(maps)
        return raw

    def activate(self, index: int, raw: Tensor) -> Tensor:
        """Activate; behind the stem also shuffle the two halves."""
        return F.relu(raw) if index == 0 else shuffle(F.relu(raw), 2)

    def embed(self, features: Tensor) -> Tensor:
        """Widen, activate and pool the last maps."""
        return pool(F.relu(self.bn2(self.conv2(features))))

    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, classes]."""
        logits: Tensor = self.linear(embedding)
        return logits
