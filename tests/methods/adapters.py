"""Running trained layers as the stored values of ``repdistiller_adapters.npz`` were made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.golden import golden
from tests.methods.support import tensor


def adapters() -> dict[str, Any]:
    """All stored values."""
    return golden("repdistiller_adapters.npz")


def fill(layer: nn.Module, prefix: str) -> None:
    """Load the layer's own parameters and buffers; a stored bias that it does without is left out."""
    layer.load_state_dict({name: tensor(adapters()[f"{prefix}.{name}"]) for name in layer.state_dict()})


def cotangent(output: Tensor, number: int) -> Tensor:
    """What a module's ``number``-th output was multiplied with for the stored gradients (golden/README's hash)."""
    word = (1 << 32) - 1
    bits = (torch.arange(output.numel()) * 2654435761 + (7777 + number) * 2246822519 + 374761393) & word
    for shift, factor in ((15, 2246822519), (13, 3266489917), (16, 1)):
        bits = ((bits ^ (bits >> shift)) * factor) & word
    return ((bits.double() + 0.5) / 2**32 * 2 - 1).reshape(output.shape)
