"""Wide residual networks (Zagoruyko and Komodakis 2016): each convolution is preceded by its activation.

Parameter names and their order are those of the public distillation benchmarks, so their checkpoints load
unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.models.batch_norm import GlobalBatchNorm
from raydistill.models.resnet import conv3x3
from raydistill.models.taps import StagedNetwork, initialise_fan_out, pool


class WideBlock(nn.Module):
    """Two normalised, activated convolutions around a shortcut; returns their sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block; ``stride`` 2 halves the size."""
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/stride, W/stride]."""
        active = F.relu(self.bn1(maps))
        hidden: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        # The projection sees the activated input, the identity sees the raw one.
        return hidden + (maps if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Blocks of one width; the first one changes width and size."""

    def __init__(self, count: int, inputs: int, outputs: int, stride: int) -> None:
        """Build ``count`` blocks, the first with the given stride."""
        super().__init__()
        first = WideBlock(inputs, outputs, stride)
        self.layer = nn.Sequential(first, *(WideBlock(outputs, outputs, 1) for _ in range(count - 1)))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H/stride, W/stride]."""
        total: Tensor = self.layer(maps)
        return total


class WideResNet(StagedNetwork):
    """WRN; ``depth`` is 6n + 4. Features are raw sums, ``preact`` is what the next block makes of them."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, depth: int, width: int) -> None:
        """Build the network; ``width`` multiplies the channels of the three stages."""
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = conv3x3(in_channels, 16)
        # wrn_*_1 keeps 16 channels in its first stage, so that stage has no projection.
        self.block1 = WideStage(count, 16, 16 * width, 1)
        self.block2 = WideStage(count, 16 * width, 32 * width, 2)
        self.block3 = WideStage(count, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self.initialise()

    def initialise(self) -> None:
        """Draw the convolutions; the classifier is PyTorch's, without a bias at first."""
        initialise_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Run the first convolution (index 0) or ``block<index>``."""
        stage = (self.conv1, self.block1, self.block2, self.block3)[index]
        raw: Tensor = stage(maps)
        return raw

    def activate(self, index: int, raw: Tensor) -> Tensor:
        """Return the sum itself: the activation belongs to the next block."""
        return raw

    def preactivation(self, index: int, raw: Tensor) -> Tensor:
        """Normalise the sum as the next block does."""
        following = {1: self.block2.layer[0], 2: self.block3.layer[0]}.get(index)
        norm = self.bn1 if following is None else following.bn1
        assert isinstance(norm, nn.BatchNorm2d)
        return _normalise_silently(norm, raw)

    def embed(self, features: Tensor) -> Tensor:
        """Normalise, activate and pool the last sums."""
        return pool(F.relu(self.bn1(features)))

    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, classes]."""
        logits: Tensor = self.fc(embedding)
        return logits


def _normalise_silently(norm: nn.BatchNorm2d, maps: Tensor) -> Tensor:
    """Normalise as the forward pass also does, whose running statistics must count a batch only once."""
    if norm.training:
        if isinstance(norm, GlobalBatchNorm):
            return norm.of_batch(maps)
        return F.batch_norm(maps, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return F.batch_norm(maps, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
