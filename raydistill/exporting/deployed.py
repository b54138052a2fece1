"""The network as it is given away: it takes plain pixels and normalises them itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from raydistill.section import Count, Section

if TYPE_CHECKING:
    from raydistill.models.taps import Tapped

IMAGES = "images"
"""What every format calls its one input."""


class Description(Section):
    """What rebuilds a student from its weights; it travels inside the exported file as JSON.

    ``image_shape`` is (C, H, W); ``mean`` and ``std`` are those of each channel for pixels in [0, 1]. ``outputs`` are
    in the order in which the network returns them. ``classes`` are empty where the data set has no names for them.
    """

    model: str
    taps: dict[str, str] = Field(default_factory=dict)
    num_classes: Count
    image_shape: tuple[Count, Count, Count]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    outputs: Annotated[tuple[str, ...], Field(min_length=1)]
    classes: tuple[str, ...] = ()


class Deployed(nn.Module):
    """A student behind its normalisation, so that mean and std cannot be forgotten; in evaluation mode, frozen."""

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, network: Tapped, description: Description) -> None:
        """Take over a network."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.description = description
        mean, std = torch.tensor(description.mean), torch.tensor(description.std)
        # Not persistent: the weights of this module are those of the student and no others.
        self.register_buffer("pixel_scale", (1.0 / std)[:, None, None], persistent=False)
        self.register_buffer("pixel_shift", (mean / std)[:, None, None], persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Float images [B, C, H, W] in [0, 1] -> ``logits`` [B, classes] where trained, ``embedding`` [B, D]."""
        found: dict[str, Tensor] = self.network(images * self.pixel_scale - self.pixel_shift, self.description.outputs)
        return found
