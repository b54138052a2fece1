"""Networks between an embedding and the space of a self-supervised loss; none keeps running statistics.

A head is never used outside training, so its batch-norms always use batch statistics, and its forward changes
nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from raydistill.methods.contrast import unit
from raydistill.methods.precision import no_autocast
from raydistill.methods.state import without_running_statistics


def mlp(
    inputs: int, hidden: int, outputs: int, *, layers: int, batch_norm: bool, activation: type[nn.Module] = nn.ReLU
) -> nn.Module:
    """Linear layers with [BatchNorm and] an activation between them; a bare ``Linear`` where ``layers`` is 1."""
    if layers == 1:
        return nn.Linear(inputs, outputs)
    parts: list[nn.Module] = []
    for width in (inputs, *[hidden] * (layers - 2)):
        parts += [nn.Linear(width, hidden), *([nn.BatchNorm1d(hidden)] if batch_norm else []), activation()]
    head = nn.Sequential(*parts, nn.Linear(hidden, outputs))
    without_running_statistics(head)
    return head


def with_zero_gradient(weight: Tensor) -> Tensor:
    """Return the same values, whose gradient is zero.

    A detached weight would get none at all, for which the wrapper for distributed training would wait in vain.
    """
    return weight.detach() + 0.0 * weight


class Prototypes(nn.Module):
    """K unit vectors [K, dimension] that are trained, and compared with unit embeddings (SwAV)."""

    def __init__(self, dimension: int, prototypes: int) -> None:
        """Draw them as a linear layer's weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(prototypes, dimension))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        self.normalise()

    def forward(self, rows: Tensor, *, trained: bool = True) -> Tensor:
        """Cosines of ``rows`` [B, dimension] and the prototypes: [B, K] in float32 at least."""
        weight = self.weight if trained else with_zero_gradient(self.weight)
        with no_autocast(rows):
            return F.linear(unit(rows), weight)

    def normalise(self) -> None:
        """Bring the prototypes back to length 1; to be called after each step of the optimiser."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))


class WeightNormLinear(nn.Module):
    """Linear layer without bias whose weight is ``weight_g`` [K, 1] times unit rows of ``weight_v`` [K, D]."""

    def __init__(self, inputs: int, outputs: int, *, train_scale: bool) -> None:
        """``weight_g`` starts at 1; without ``train_scale`` it stays there."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=train_scale)
        self.weight_v = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)

    def forward(self, rows: Tensor, *, trained: bool = True) -> Tensor:
        """[B, D] -> [B, K]; the weight gets no gradient unless ``trained``."""
        weight = self.weight_g * F.normalize(self.weight_v, dim=1)
        return F.linear(rows, weight if trained else with_zero_gradient(weight))


class PrototypeHead(nn.Module):
    """DINO's head: an MLP with GELU, L2 normalisation, a weight-normed linear layer to the prototypes.

    Names of the state are those of DINO's checkpoints.
    """

    def __init__(
        self,
        inputs: int,
        prototypes: int,
        *,
        hidden: int,
        bottleneck: int,
        layers: int,
        batch_norm: bool,
        norm_last_layer: bool,
    ) -> None:
        """``norm_last_layer`` keeps the prototypes at length 1."""
        super().__init__()
        self.mlp = mlp(inputs, hidden, bottleneck, layers=layers, batch_norm=batch_norm, activation=nn.GELU)
        for part in self.mlp.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        self.last_layer = WeightNormLinear(bottleneck, prototypes, train_scale=not norm_last_layer)

    def forward(self, embedding: Tensor, *, train_last_layer: bool = True) -> Tensor:
        """[B, inputs] -> [B, prototypes], in float32 at least."""
        rows = self.mlp(embedding)
        with no_autocast(rows):
            logits: Tensor = self.last_layer(unit(rows), trained=train_last_layer)
            return logits
