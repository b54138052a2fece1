"""Networks for ImageNet that the papers start from and torchvision has no name for; its layers, its parameter names."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

from raydistill.models.hooked import HookedNetwork

_SIZE = 224


class _WideResNet(ResNet):  # type: ignore[misc]
    """ResNet-50 all of whose channels are multiplied, as SimCLR widens it: not only those inside the blocks."""

    def __init__(self, num_classes: int, in_channels: int, width: int) -> None:
        self._width = width
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=1)
        self.conv1 = nn.Conv2d(in_channels, 64 * width, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(2048 * width, num_classes)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:  # the stem's channels, which the parent takes to be 64
            self.inplanes = 64 * self._width
        layer: nn.Sequential = super()._make_layer(block, planes * self._width, blocks, stride, dilate)
        return layer


def wide_resnet50(num_classes: int, in_channels: int = 3, *, width: int) -> HookedNetwork:
    """ResNet-50 with ``width`` times the channels; its embedding has 2048 * width."""
    return HookedNetwork(_WideResNet(num_classes, in_channels, width), "fc", (in_channels, _SIZE, _SIZE))


def deit_small(num_classes: int, in_channels: int = 3) -> HookedNetwork:
    """DeiT-S/16 (Touvron et al. 2021): 12 layers of width 384 with 6 heads on 224 x 224 pixels."""
    network = VisionTransformer(
        image_size=_SIZE,
        patch_size=16,
        num_layers=12,
        num_heads=6,
        hidden_dim=384,
        mlp_dim=1536,
        num_classes=num_classes,
    )
    if in_channels != 3:
        network.conv_proj = nn.Conv2d(in_channels, 384, 16, stride=16)
    return HookedNetwork(network, "heads.head", (in_channels, _SIZE, _SIZE))
