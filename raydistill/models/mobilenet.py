"""MobileNetV2 for small images (Sandler et al. 2018), as the distillation benchmarks train it: half width.

Parameter names and their order are those of the public distillation benchmarks, so their checkpoints load
unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.models.taps import StagedNetwork, initialise_fan_out, pool

# Expansion, channels at full width, blocks, stride; the second row's stride is 1 where ImageNet's network has
# 2.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_GROUPS_OF_STAGE = {1: (0, 1), 2: (2,), 3: (3, 4), 4: (5, 6)}
_EMBEDDING_WIDTH = 1280


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without activation; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        """Build the block; ``expansion`` is how much wider it is inside."""
        super().__init__()
        inner = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/stride, W/stride]."""
        hidden: Tensor = self.conv(maps)
        return maps + hidden if self.shortcut else hidden


class MobileNetV2(StagedNetwork):
    """MobileNetV2 with a stride-2 stem; the maps of stages 1 to 4 are linear, so ``preact`` equals them."""

    num_stages = 5

    def __init__(self, num_classes: int, in_channels: int = 3, *, width: float = 0.5) -> None:
        """Build the network; ``width`` scales all channels but those of the embedding."""
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(nn.Conv2d(in_channels, inputs, 3, 2, padding=1, bias=False), nn.BatchNorm2d(inputs))
        self.blocks = nn.ModuleList()
        for expansion, channels, count, stride in _GROUPS:
            outputs = int(channels * width)
            first = InvertedResidual(inputs, outputs, stride, expansion)
            others = (InvertedResidual(outputs, outputs, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *others))
            inputs = outputs
        self.conv2 = nn.Sequential(nn.Conv2d(inputs, _EMBEDDING_WIDTH, 1, bias=False), nn.BatchNorm2d(_EMBEDDING_WIDTH))
        # A sequence of one: published checkpoints call the layer classifier.0.
        self.classifier = nn.Sequential(nn.Linear(_EMBEDDING_WIDTH, num_classes))
        self.initialise()

    def initialise(self) -> None:
        """Draw the convolutions and the classifier."""
        initialise_fan_out(self, linear_std=0.01)

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Run the stem (index 0) or the groups of blocks that make up the stage."""
        if index == 0:
            raw: Tensor = self.conv1(maps)
            return raw
        for group in _GROUPS_OF_STAGE[index]:
            maps = self.blocks[group](maps)
        return maps

    def activate(self, index: int, raw: Tensor) -> Tensor:
        """Activate the stem only: the narrow maps stay linear."""
        return F.relu(raw) if index == 0 else raw

    def embed(self, features: Tensor) -> Tensor:
        """Widen, activate and pool the last maps."""
        return pool(F.relu(self.conv2(features)))

    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, classes]."""
        logits: Tensor = self.classifier(embedding)
        return logits
