"""One pass of a network over a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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

    ``positions`` int64 [N] selects samples; the network's mode is restored.
    """
    if positions is None:
        positions = torch.arange(len(data), device=data.device)
    training = network.training
    network.eval()
    try:
        return torch.cat([_output(network, data, output, part) for part in torch.split(positions, batch_size)])
    finally:
        network.train(training)


def _output(network: nn.Module, data: ResidentSet, output: str, positions: Tensor) -> Tensor:
    images = normalise(data.pixels(positions), data.mean, data.std).to(memory_format=torch.channels_last)
    found: Tensor = network(images, outputs=(output,))[output]
    return found.clone()  # a network whose kernels are replayed overwrites it with the next batch's
