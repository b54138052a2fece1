"""VGG with batch normalisation for small images (Simonyan and Zisserman 2015), and the shallow VGG-8.

Parameter names and their order are those of the public distillation benchmarks, so their checkpoints load
unchanged.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from raydistill.models.taps import StagedNetwork, initialise_fan_out

_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


class Vgg(StagedNetwork):
    """Five groups of 3x3 convolutions, halved in size between them, pooled into a 512-wide embedding."""

    num_stages = 5

    def __init__(self, num_classes: int, in_channels: int = 3, *, depth: int) -> None:
        """Build the network; ``depth`` counts its layers with weights, as its name does."""
        super().__init__()
        inputs = in_channels
        for index, (count, width) in enumerate(zip(_CONVOLUTIONS[depth], _WIDTHS, strict=True)):
            self.add_module(f"block{index}", _group(count, inputs, width))
            inputs = width
        self.classifier = nn.Linear(inputs, num_classes)
        self.initialise()

    def initialise(self) -> None:
        """Draw the convolutions and the classifier."""
        initialise_fan_out(self, linear_std=0.01)

    def run_stage(self, index: int, maps: Tensor) -> Tensor:
        """Halve the size (not for the first and, on small images, the last group), run ``block<index>``."""
        # The benchmark keeps 4x4 maps at 32x32 input and halves a fourth time at 64x64, where this stage sees
        # 8x8.
        smallest_to_halve = 8 if index == self.num_stages - 1 else 2
        if index > 0 and min(maps.shape[-2:]) >= smallest_to_halve:
            maps = F.max_pool2d(maps, 2)
        raw: Tensor = getattr(self, f"block{index}")(maps)
        return raw

    def classify(self, embedding: Tensor) -> Tensor:
        """[B, D] -> [B, classes]."""
        logits: Tensor = self.classifier(embedding)
        return logits


def _group(count: int, inputs: int, width: int) -> nn.Sequential:
    """Return ``count`` normalised convolutions with activations between them, none behind the last."""
    layers: list[nn.Module] = []
    for index in range(count):
        if index > 0:
            layers.append(nn.ReLU())
        layers += [nn.Conv2d(width if index else inputs, width, 3, padding=1), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers)
