"""One pass of a network over a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raydistill.data.ahead import ahead
from raydistill.data.views import normalise

if TYPE_CHECKING:
    from raydistill.data.resident import ResidentSet


@torch.no_grad()
def extract(
    network: nn.Module,
    data: ResidentSet,
    output: str,
    positions: Tensor | None = None,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return ``output`` [N, ...] of the network in evaluation mode on the evaluation views.

    Images that are not decoded yet are so by threads while the network sees those before.

    ``positions`` int64 [N] selects samples; the network's mode is restored.
    """
    if positions is None:
        positions = torch.arange(len(data), device=data.device)
    parts = torch.split(positions, batch_size)
    pixels = map(data.pixels, parts) if data.resident else ahead(data.pixels, parts)
    training = network.training
    network.eval()
    try:
        return torch.cat([_output(network, data, output, images) for images in pixels])
    finally:
        network.train(training)


def spread(images: int, most: int) -> Tensor:
    """Positions of at most so many images, evenly over a set in which classes may come one after the other, int64."""
    count = min(images, most)
    return torch.arange(count) * images // count


def _output(network: nn.Module, data: ResidentSet, output: str, pixels: Tensor) -> Tensor:
    images = normalise(pixels, data.mean, data.std).to(memory_format=torch.channels_last)
    found: Tensor = network(images, outputs=(output,))[output]
    return found.clone()  # a network whose kernels are replayed overwrites it with the next batch's
