"""One pass of a network over a data set."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raydistill.data.ahead import ahead
from raydistill.data.views import normalise

if TYPE_CHECKING:
    from raydistill.data.resident import ResidentSet


@torch.no_grad()
def extract_all(
    network: nn.Module,
    data: ResidentSet,
    outputs: Collection[str],
    positions: Tensor | None = None,
    *,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """Return the named outputs, each [N, ...], of the network in evaluation mode on the evaluation views, in one pass.

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
        seen = [_outputs(network, data, outputs, images) for images in pixels]
    finally:
        network.train(training)
    return {name: torch.cat([batch[name] for batch in seen]) for name in outputs}


def extract(
    network: nn.Module,
    data: ResidentSet,
    output: str,
    positions: Tensor | None = None,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return a single output as ``extract_all`` does."""
    return extract_all(network, data, (output,), positions, batch_size=batch_size)[output]


def spread(images: int, most: int) -> Tensor:
    """Positions of at most so many images, evenly over a set in which classes may come one after the other, int64."""
    count = min(images, most)
    return torch.arange(count) * images // count


def pooled(maps: Tensor, most: int = 9216) -> Tensor:
    """Average maps [B, C, H, W] to the largest squares that leave no more than ``most`` numbers, as [B, numbers].

    Linear classifiers on different stages have about as many weights then: Goyal et al. 2019,
    https://arxiv.org/abs/1905.01235, whom CompRes follows for its Table 5.
    """
    channels, height, width = maps.shape[1:]
    side = max(1, min(height, width, math.isqrt(most // channels)))
    return torch.nn.functional.adaptive_avg_pool2d(maps, side).flatten(1)


def _outputs(network: nn.Module, data: ResidentSet, outputs: Collection[str], pixels: Tensor) -> dict[str, Tensor]:
    images = normalise(pixels, data.mean, data.std).to(memory_format=torch.channels_last)
    found: dict[str, Tensor] = network(images, outputs=tuple(outputs))
    # A network whose kernels are replayed overwrites an output with the next batch's.
    return {name: pooled(found[name]) if found[name].ndim == 4 else found[name].clone() for name in outputs}
