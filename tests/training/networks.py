"""Students as users write them, named as ``tests.training.networks:<function>``."""

from __future__ import annotations

import os
import signal

from torch import Tensor, nn


def dropping(num_classes: int) -> nn.Module:
    """Draws from the process's random state at every step."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, num_classes)
    )


class _Lethal(nn.Module):
    """Kills its process at the fourth batch that it is trained on."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network, self.seen = dropping(num_classes), 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += self.training
        if self.seen > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        logits: Tensor = self.network(images)
        return logits


def lethal(num_classes: int) -> nn.Module:
    return _Lethal(num_classes)
