"""The averaged copy of student and head that teaches in self-distillation, or gives the keys of a contrast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raydistill.methods.state import frozen_copy, move_average


class AveragedEncoder(nn.Module):
    """A copy of a network and of the head on its embedding, which follows both; never takes a gradient."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        """Start as they are."""
        super().__init__()
        self.network = frozen_copy(network)
        self.head = frozen_copy(head)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """Encode views of B images each -> [views * B, D], view by view; changes no state."""
        with torch.no_grad():
            rows = [self.network(images, outputs=("embedding",))["embedding"] for images in views]
            encoded: Tensor = self.head(torch.cat(rows))
            return encoded

    def follow(self, network: nn.Module, head: nn.Module, momentum: float) -> None:
        """Move every parameter towards the original's."""
        move_average(self.network, network, momentum)
        move_average(self.head, head, momentum)
